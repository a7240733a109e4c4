//! Keys for tests, made with `openssl`; they are used nowhere else.

/// Private keys and the algorithm that each signs with.
pub(crate) const KEYS: &[(&str, &str)] = &[
    (
        "\
-----BEGIN RSA PRIVATE KEY-----\n\
MIIEogIBAAKCAQEAn7A/vvwsCEMGdbY9jeRRgWfpEouB1oPD3aPpyoDKWS96/jur\n\
krfFopdUbHmEnTwRGJKugD9oWamnFmEsI5157WWC2uzqbGMiiFmLECkOxhTt9wJb\n\
iHa4f0ROqGRX6nMNv7OCyIVn0JIQE1AGTeEst68mGWwfWzf2lLZHsWc+eA7XZhN6\n\
OAHSVm0idtQ1KZpfWXZfSq6AYjPppRRV3gKg1MwUOwFvh+fLfP2RtmbJ6r4uS2NO\n\
9XytZHCsb7mphsWd92AbPZTOssY3k65Eqg4ps3uUUJCCwsQtGmjBteAFg/zY81h0\n\
zOmxWqE6/QvoHNqwui58AIJWJReCmZ/S86Wy7wIDAQABAoIBABGbE3QhhlNE3H32\n\
4TN3JDtRswMt6Vs2vM3/Z+PBLk4F65gDCSgMZdhGufKZtTLGsBXW+jE+jGkySK8x\n\
eHXWw14WjoZHj5LynRiOUsQt2qihHxlYI7JYcH/rjoaHRaAeHjpv9q/X8Xmv2ODg\n\
Nkm41T7NKzSrVIuwkFmV/TKEcQE4aRZRaWFWlIt00W8+yb/eUF0zgtDEq04L9RK4\n\
JXbnCto4w7ZQYzu6iIcdpERLQHP61ZX79QAufK5ghXxRwS99T58KCeyuNo/bamSD\n\
anJaVofNfftdyIYkWNWSqYTjTB1GKSe1AZeMNSZJRqN4qt3xN6hr3BYF9FTVQwnT\n\
zQje240CgYEAy/En1yzEhT59Mtw95uP5NwAItr/RWZZBUF2YiWeJwCG+69gQwHP3\n\
4gvLWBB9zqPe1LwZNaEaxIsLcHeKPyPuX50pbjbT4NsXERX6bD/vz1uRKc5yLhG7\n\
iqvVRdOyNjnJUH3XtDKyBz0/Q6vApEDLUnkRYrbxxdNSUnetKdpUYYUCgYEAyHNK\n\
bEuronF5UecAfWf6Cx51nKDHJZokMlS1fXO1WQvIKPfieYn2hzmHkAvuKc5YzUNX\n\
8+AH0NUZ6i9OT3fi6fIPqy0emPwpBV3N9XCgqzms4bM3FSZ9Lrzk+EbXoED/WNh9\n\
JUZqKcB4TrJzPGXPJcqnEC+cWXIdV7RwcTOucuMCgYBqFVUt/mFzFeA2Fo40jh1S\n\
WLgvp3OUcC4lSapQvwTOZj9Tmp6MHUax1IS/mER4upDsg7NxTA4KcnFO3T+SPHSA\n\
U9X7OJXZ/tzuzEnpCRELAYxu/K4z/JFbPqq/mbC3uDNZpTwQxdYJIfjIkIyyY+nf\n\
So6alKMKzjOiJhJzFNiTqQKBgH582eqqeVzhNAgtt45q7UrU5qx2fBRLRyoHcBsA\n\
x9+v4pePjHbbSxibgeKw1JHG5xxnsXlv1h6+SkMPpN/aq/KqT57ZsuQgwpXjUpLd\n\
hlVl6KTnnQuYpQe4JNhSg8BZI4hh296Ip3c/P+uRCcyEBgo37eH12ThMHR35+7ZD\n\
QYK3AoGAS6cXiwK9/sQv4pk/ymQ5064T7IlS6jSX6fsY+XXQf6nSdqU+tqLgVx/e\n\
dWF3hnKo1mCXZpLswenlkXtaSqpabFwhXU0Dvdf4m7q6aTUENA7h0dWhsqRYdtjv\n\
hMTbQv5H/L6m6bFioXpvdGbJVnGpgmXhTt32AaAg6UNO41eYfy4=\n\
-----END RSA PRIVATE KEY-----\n\
",
        "RS256",
    ),
    (
        "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg8n4UQr2fEBNkPq8w\n\
3QoW9hOuBKWlO7Gc6YWlNCWQptWhRANCAARZG0ylOQ/0Ewo9EvL/Z/WuMkj8FxE+\n\
eVekAfpDaxLGdz2SQyM1LIfyZzk9Kn4pX7Ym7jvmLYAR763Kn2KZuEHv\n\
-----END PRIVATE KEY-----\n\
",
        "ES256",
    ),
    (
        "\
-----BEGIN EC PARAMETERS-----\n\
BgUrgQQAIg==\n\
-----END EC PARAMETERS-----\n\
-----BEGIN EC PRIVATE KEY-----\n\
MIGkAgEBBDDk4gtigCZdSI0CGMZuh+FLgwbzFP6ZUEugURma8aGZ5tUodqBQ+r62\n\
iv0604UFXPSgBwYFK4EEACKhZANiAAQV0Kf7do789+aqAx142ejCO2o1S3QAA+mr\n\
GiE/kflTo3Ump4EQbjqsJYJLF13Fmz3Nbn4/Vcy85v4yOuKZKi093RqnLo3Oz3gt\n\
BUrf0Ft2bz5FsB1XHIIaUvcvfXJ5INs=\n\
-----END EC PRIVATE KEY-----\n\
",
        "ES384",
    ),
    (
        "\
-----BEGIN EC PRIVATE KEY-----\n\
MIHcAgEBBEIBwl/oXLm0C7h9b0Wiu+XjezS9a5AkYqNfebx6QXo87Jeh6nBlGQl4\n\
kvmolGRMFtA1nXA9lWnvX5CL33EZAZGYN2OgBwYFK4EEACOhgYkDgYYABADfs7MA\n\
ObJvcpDDdqUiCMzl4MYsSIUr6lDmBRf9uMB+ezqtg/jizWmcOEg6SmcUR7b7HV1D\n\
GjUNElFzemApO+volwCagTnHLrpx60vjnPaDwafver/zb9YDwYd9rSC5JGkS36Yc\n\
pztZ7LEI0p+DjHvO62PD0ABHS+KHJflsu9IIqYZYUg==\n\
-----END EC PRIVATE KEY-----\n\
",
        "ES512",
    ),
];

/// Their identifiers.
pub(crate) const IDS: &[&str] = &[
    "Cp_kSHDBmZrbpYtm9yShKNPitso3ja2sArVlhNm70fc",
    "qrhBTtd1F3kWuZqRUudKOMtKWAIxZ3ZziXyKzDM5Oy8",
    "7CuL4cP7pPSi8d-RAKg0_D7WLMAWySwADlbrc2XUYVY",
    "Y4L-oSfA3MVSCl_7N8obXgVn6k2-17lLvVvw5MdsRyQ",
];
