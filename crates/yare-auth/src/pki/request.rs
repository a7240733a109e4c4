//! PKCS#10 requests for certificates, read as Kubernetes' signers read them: what of the subject and of the
//! alternative names a certificate can carry. Nothing else of a request comes into one.

use std::net::IpAddr;

use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::OID_PKCS9_EXTENSION_REQUEST,
    pem::parse_x509_pem,
    prelude::FromDer,
    x509::X509Name,
};

/// The attributes of a subject (below 2.5.4) in the order in which certificates have them, as Go's
/// `pkix.Name` does: country, organization, unit, locality, province, street, postal code, common name, serial
/// number.
pub(super) const ATTRIBUTES: [u64; 9] = [6, 10, 11, 7, 8, 9, 17, 3, 5];
const ORGANIZATION: usize = 1;
const COMMON_NAME: usize = 7;
/// Attributes that a name has once: the last one counts.
const SINGLE: [u64; 2] = [3, 5];

/// What is wrong with a request.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// No request in PEM.
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    /// Its DER, or something that it asks for.
    #[error("x509: {0}")]
    Malformed(String),
    /// Not signed by the key in it.
    #[error("unable to verify certificate request signature: {0}")]
    Signature(String),
}

/// Whom a certificate names; attributes that are not in [`ATTRIBUTES`] are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name(pub(super) [Vec<String>; ATTRIBUTES.len()]);

impl Name {
    fn read(name: &X509Name<'_>) -> Result<Self, RequestError> {
        let mut out = Self::default();
        for attribute in name.iter_attributes() {
            let text = attribute.as_str().map_err(|e| malformed(format!("invalid RDNSequence: {e}")))?;
            let arcs: Option<Vec<u64>> = attribute.attr_type().iter().map(Iterator::collect);
            let Some([2, 5, 4, arc]) = arcs.as_deref() else { continue };
            if let Some(i) = ATTRIBUTES.iter().position(|a| a == arc) {
                if SINGLE.contains(arc) {
                    out.0[i].clear();
                }
                out.0[i].push(text.to_owned());
            }
        }
        Ok(out)
    }

    /// A user in groups.
    pub fn new(common_name: &str, organizations: &[&str]) -> Self {
        let mut out = Self::default();
        out.0[COMMON_NAME].push(common_name.to_owned());
        out.0[ORGANIZATION] = organizations.iter().map(|o| (*o).to_owned()).collect();
        out
    }

    /// The user; empty where there is none.
    pub fn common_name(&self) -> &str {
        self.0[COMMON_NAME].first().map_or("", String::as_str)
    }

    /// Its groups.
    pub fn organizations(&self) -> &[String] {
        &self.0[ORGANIZATION]
    }

    /// Whether a certificate would name nobody.
    pub fn is_empty(&self) -> bool {
        self.0.iter().flatten().next().is_none()
    }
}

/// A request that its own key has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Whom it names.
    pub subject: Name,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// Mail addresses.
    pub emails: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
    /// URIs.
    pub uris: Vec<String>,
    /// The key, a `SubjectPublicKeyInfo` in DER.
    pub(super) key: Vec<u8>,
}

impl CertificateRequest {
    /// A request that names somebody and has no key: what to ask policies about. No certificate comes of it.
    pub fn of(subject: Name) -> Self {
        Self {
            subject,
            dns_names: Vec::new(),
            emails: Vec::new(),
            addresses: Vec::new(),
            uris: Vec::new(),
            key: Vec::new(),
        }
    }

    /// The key that is to be certified, a `SubjectPublicKeyInfo` in DER.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Reads the first block of a PEM file.
    pub fn from_pem(pem: &[u8]) -> Result<Self, RequestError> {
        let (_, block) = parse_x509_pem(pem).map_err(|_| RequestError::Pem)?;
        if block.label != "CERTIFICATE REQUEST" {
            return Err(RequestError::Pem);
        }
        Self::from_der(&block.contents)
    }

    fn from_der(der: &[u8]) -> Result<Self, RequestError> {
        let (rest, request) = X509CertificationRequest::from_der(der)
            .map_err(|e| malformed(format!("malformed certificate request: {e}")))?;
        if !rest.is_empty() {
            return Err(malformed("trailing data"));
        }
        request.verify_signature().map_err(|e| RequestError::Signature(e.to_string()))?;
        let info = &request.certification_request_info;
        let mut out = Self { key: info.subject_pki.raw.to_vec(), ..Self::of(Name::read(&info.subject)?) };
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
                if attribute.oid == OID_PKCS9_EXTENSION_REQUEST {
                    return Err(malformed("invalid extension request"));
                }
                continue;
            };
            for extension in &requested.extensions {
                match extension.parsed_extension() {
                    ParsedExtension::SubjectAlternativeName(names) => {
                        for name in &names.general_names {
                            out.add(name)?;
                        }
                    }
                    // A list of names that cannot be read must not be taken for none.
                    ParsedExtension::ParseError { error } => {
                        return Err(malformed(format!("invalid extension {}: {error}", extension.oid)));
                    }
                    _ => {}
                }
            }
        }
        Ok(out)
    }

    fn add(&mut self, name: &GeneralName<'_>) -> Result<(), RequestError> {
        let ascii = |text: &str, what: &str| match text.is_ascii() {
            true => Ok(text.to_owned()),
            false => Err(malformed(format!("SAN {what} is malformed"))),
        };
        match name {
            GeneralName::DNSName(name) => self.dns_names.push(ascii(name, "dNSName")?),
            GeneralName::RFC822Name(name) => self.emails.push(ascii(name, "rfc822Name")?),
            GeneralName::URI(uri) => self.uris.push(ascii(uri, "uniformResourceIdentifier")?),
            GeneralName::IPAddress(bytes) => self.addresses.push(address(bytes)?),
            GeneralName::Invalid(tag, _) => {
                return Err(malformed(format!("invalid subject alternative name of {tag}")));
            }
            // Other forms of names come into no certificate.
            _ => {}
        }
        Ok(())
    }
}

fn malformed(why: impl Into<String>) -> RequestError {
    RequestError::Malformed(why.into())
}

fn address(bytes: &[u8]) -> Result<IpAddr, RequestError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6: [u8; 16] = bytes
        .try_into()
        .map_err(|_| malformed(format!("cannot parse IP address of length {}", bytes.len())))?;
    Ok(v6.into())
}
