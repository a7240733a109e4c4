//! Certificates for requests, as kube-controller-manager's signers make them
//! (`pkg/controller/certificates/authority`): subject, key and alternative names of the request, usages and
//! validity of the signer, and nothing else. What rcgen does not: it keeps one organization of several.

use jiff::Timestamp;
use rcgen::{SignatureAlgorithm, SigningKey as _};
use ring::rand::{SecureRandom as _, SystemRandom};
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension, prelude::FromDer};
use yasna::{
    DERWriter, DERWriterSeq, Tag,
    models::{ObjectIdentifier, TaggedDerValue},
    tags::{TAG_GENERALIZEDTIME, TAG_UTCTIME},
};

use super::{
    Authority, PkiError, der, pem,
    request::{ATTRIBUTES, CertificateRequest, Name},
};

/// `keyUsage` (RFC 5280, section 4.2.1.3) by the API's names: the bit of each.
const KEY_USAGES: [(&str, u16); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// `extKeyUsage` by the API's names, in the order in which a certificate lists them.
const EXTENDED_KEY_USAGES: [(&str, &[u64]); 13] = [
    ("any", &[2, 5, 29, 37, 0]),
    ("server auth", &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
    ("client auth", &[1, 3, 6, 1, 5, 5, 7, 3, 2]),
    ("code signing", &[1, 3, 6, 1, 5, 5, 7, 3, 3]),
    ("email protection", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("s/mime", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("ipsec end system", &[1, 3, 6, 1, 5, 5, 7, 3, 5]),
    ("ipsec tunnel", &[1, 3, 6, 1, 5, 5, 7, 3, 6]),
    ("ipsec user", &[1, 3, 6, 1, 5, 5, 7, 3, 7]),
    ("timestamping", &[1, 3, 6, 1, 5, 5, 7, 3, 8]),
    ("ocsp signing", &[1, 3, 6, 1, 5, 5, 7, 3, 9]),
    ("microsoft sgc", &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
    ("netscape sgc", &[2, 16, 840, 1, 113_730, 4, 1]),
];

const RSA_SHA256: &[u64] = &[1, 2, 840, 113_549, 1, 1, 11];
const KEY_USAGE: u64 = 15;
const SUBJECT_ALTERNATIVE_NAME: u64 = 17;
const BASIC_CONSTRAINTS: u64 = 19;
const AUTHORITY_KEY_IDENTIFIER: u64 = 35;
const EXTENDED_KEY_USAGE: u64 = 37;
/// Context tags of general names.
const EMAIL: u64 = 1;
const DNS: u64 = 2;
const URI: u64 = 6;
const ADDRESS: u64 = 7;

/// What a certificate may be used for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usages {
    /// Bit 0 of the extension is the highest here.
    bits: u16,
    extended: Vec<&'static [u64]>,
}

impl Usages {
    /// From the API's names. The error lists those that are none.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, String> {
        let mut out = Self::default();
        let mut unknown = Vec::new();
        for name in names.iter().map(AsRef::as_ref) {
            if let Some((_, bit)) = KEY_USAGES.iter().find(|(n, _)| *n == name) {
                out.bits |= 0x8000 >> bit;
            } else if !EXTENDED_KEY_USAGES.iter().any(|(n, _)| *n == name) {
                unknown.push(format!("{name:?}"));
            }
        }
        if !unknown.is_empty() {
            return Err(format!("unrecognized usage values: [{}]", unknown.join(" ")));
        }
        for (name, oid) in EXTENDED_KEY_USAGES {
            if names.iter().any(|n| n.as_ref() == name) && !out.extended.contains(&oid) {
                out.extended.push(oid);
            }
        }
        Ok(out)
    }
}

impl Authority {
    /// The certificate (PEM) for `request`, good for `usages` from `not_before` until `not_after`, whole
    /// seconds both. Whether the request may have one is the caller's to know.
    pub fn certify(
        &self,
        request: &CertificateRequest,
        usages: &Usages,
        not_before: Timestamp,
        not_after: Timestamp,
    ) -> Result<String, PkiError> {
        let refused = |why: &str| PkiError::Refused(why.to_owned());
        if request.key.is_empty() {
            return Err(refused("the request has no key"));
        }
        let own = der(&self.certificate).ok_or_else(|| refused("the authority's certificate is no PEM"))?;
        let (_, own) = X509Certificate::from_der(&own)
            .map_err(|_| refused("the authority's certificate is malformed"))?;
        let key = self.issuer.key();
        let algorithm = signature_oid(key.algorithm())
            .ok_or_else(|| refused("the authority's key is of a kind that does not sign certificates"))?;
        let mut serial = [0; 16];
        SystemRandom::new().fill(&mut serial).map_err(|_| refused("no randomness for a serial number"))?;
        let to_be_signed = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_tagged(Tag::context(0), |writer| writer.write_u8(2));
                writer.next().write_bigint_bytes(&serial, true);
                write_algorithm(writer.next(), algorithm);
                writer.next().write_der(own.subject().as_raw());
                writer.next().write_sequence(|writer| {
                    write_time(writer.next(), not_before);
                    write_time(writer.next(), not_after);
                });
                write_name(writer.next(), &request.subject);
                writer.next().write_der(&request.key);
                writer.next().write_tagged(Tag::context(3), |writer| {
                    writer.write_sequence(|writer| write_extensions(writer, request, usages, &own));
                });
            });
        });
        let bad = |source| PkiError::Certificate { what: "certificate for a signing request".into(), source };
        let signature = key.sign(&to_be_signed).map_err(bad)?;
        let certificate = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_der(&to_be_signed);
                write_algorithm(writer.next(), algorithm);
                writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        });
        Ok(pem("CERTIFICATE", &certificate))
    }
}

fn signature_oid(algorithm: &'static SignatureAlgorithm) -> Option<&'static [u64]> {
    let known: [(&SignatureAlgorithm, &[u64]); 4] = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, &[1, 2, 840, 10_045, 4, 3, 2]),
        (&rcgen::PKCS_ECDSA_P384_SHA384, &[1, 2, 840, 10_045, 4, 3, 3]),
        (&rcgen::PKCS_ED25519, &[1, 3, 101, 112]),
        (&rcgen::PKCS_RSA_SHA256, RSA_SHA256),
    ];
    known.into_iter().find(|(a, _)| *a == algorithm).map(|(_, oid)| oid)
}

fn write_algorithm(writer: DERWriter<'_>, oid: &[u64]) {
    writer.write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
        if oid == RSA_SHA256 {
            writer.next().write_null();
        }
    });
}

/// `UTCTime` up to 2049, as RFC 5280 has it.
fn write_time(writer: DERWriter<'_>, time: Timestamp) {
    let time = time.to_zoned(jiff::tz::TimeZone::UTC);
    let (tag, format) = match time.year() {
        1950..2050 => (TAG_UTCTIME, "%y%m%d%H%M%SZ"),
        _ => (TAG_GENERALIZEDTIME, "%Y%m%d%H%M%SZ"),
    };
    let text = time.strftime(format).to_string();
    writer.write_tagged_der(&TaggedDerValue::from_tag_and_bytes(tag, text.into_bytes()));
}

/// All values of an attribute stand in one set.
fn write_name(writer: DERWriter<'_>, name: &Name) {
    writer.write_sequence_of(|writer| {
        for (arc, values) in ATTRIBUTES.iter().zip(&name.0) {
            if values.iter().all(String::is_empty) && (values.len() < 2) {
                continue;
            }
            writer.next().write_set_of(|writer| {
                for value in values {
                    writer.next().write_sequence(|writer| {
                        writer.next().write_oid(&ObjectIdentifier::from_slice(&[2, 5, 4, *arc]));
                        if value.bytes().all(is_printable) {
                            writer.next().write_printable_string(value);
                        } else {
                            writer.next().write_utf8_string(value);
                        }
                    });
                }
            });
        }
    });
}

fn is_printable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte)
}

fn write_extension(writer: &mut DERWriterSeq<'_>, arc: u64, critical: bool, value: &[u8]) {
    writer.next().write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(&[2, 5, 29, arc]));
        if critical {
            writer.next().write_bool(true);
        }
        writer.next().write_bytes(value);
    });
}

fn write_extensions(
    writer: &mut DERWriterSeq<'_>,
    request: &CertificateRequest,
    usages: &Usages,
    own: &X509Certificate<'_>,
) {
    if usages.bits != 0 {
        let length = 16 - usages.bits.trailing_zeros() as usize;
        let bits = usages.bits.to_be_bytes();
        let value = yasna::construct_der(|w| w.write_bitvec_bytes(&bits[..length.div_ceil(8)], length));
        write_extension(writer, KEY_USAGE, true, &value);
    }
    if !usages.extended.is_empty() {
        let value = yasna::construct_der(|writer| {
            writer.write_sequence_of(|writer| {
                for oid in &usages.extended {
                    writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
                }
            });
        });
        write_extension(writer, EXTENDED_KEY_USAGE, false, &value);
    }
    // No authority: an empty sequence.
    write_extension(writer, BASIC_CONSTRAINTS, true, &yasna::construct_der(|w| w.write_sequence(|_| ())));
    let identifier = own.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    });
    if let Some(identifier) = identifier {
        let value = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_tagged_implicit(Tag::context(0), |w| w.write_bytes(identifier));
            });
        });
        write_extension(writer, AUTHORITY_KEY_IDENTIFIER, false, &value);
    }
    let mut names: Vec<(u64, Vec<u8>)> = Vec::new();
    for (tag, list) in [(DNS, &request.dns_names), (EMAIL, &request.emails)] {
        names.extend(list.iter().map(|name| (tag, name.clone().into_bytes())));
    }
    names.extend(request.addresses.iter().map(|address| {
        let bytes = match address {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        (ADDRESS, bytes)
    }));
    names.extend(request.uris.iter().map(|uri| (URI, uri.clone().into_bytes())));
    if !names.is_empty() {
        let value = yasna::construct_der(|writer| {
            writer.write_sequence_of(|writer| {
                for (tag, bytes) in &names {
                    writer.next().write_tagged_implicit(Tag::context(*tag), |w| w.write_bytes(bytes));
                }
            });
        });
        // Where the subject says nothing, these names do.
        write_extension(writer, SUBJECT_ALTERNATIVE_NAME, request.subject.is_empty(), &value);
    }
}
