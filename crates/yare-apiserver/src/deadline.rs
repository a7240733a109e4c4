//! How long a request may take: `timeout` in its query, within the server's own limit.

use std::time::Duration;

use crate::{
    path::Query,
    status::{ApiError, ApiResult, quote},
};

/// The time that a request that ends by itself may take. `most`: the server's limit.
pub fn of(query: &Query, most: Duration) -> ApiResult<Duration> {
    let Some(text) = query.get("timeout") else { return Ok(most) };
    let wanted = parse(text).map_err(|why| {
        ApiError::bad_request(format!("invalid timeout specified in the request URL - {why}"))
    })?;
    // None, and more than the server grants, mean the server's.
    Ok(wanted.filter(|w| !w.is_zero() && *w < most).unwrap_or(most))
}

/// A duration as Go writes it (`1h2m3.5s`); none where it is negative.
pub fn parse(text: &str) -> Result<Option<Duration>, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if unsigned == "0" {
        return Ok(Some(Duration::ZERO));
    }
    if unsigned.is_empty() {
        return Err(invalid());
    }
    let (mut rest, mut total_ns) = (unsigned, 0f64);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        if !number.contains(|c: char| c.is_ascii_digit()) {
            return Err(invalid());
        }
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, after) = tail.split_at(end);
        let unit_ns = match unit {
            "" => return Err(format!("time: missing unit in duration {}", quote(text))),
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            other => {
                return Err(format!("time: unknown unit {} in duration {}", quote(other), quote(text)));
            }
        };
        total_ns += number * unit_ns;
        rest = after;
    }
    // Go's durations are 63 bits of nanoseconds.
    if total_ns > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok((!negative).then(|| Duration::from_nanos(total_ns as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want_ms) in [
            ("1s", 1000),
            ("1.5s", 1500),
            ("1h2m3s", 3_723_000),
            ("+20ms", 20),
            ("0", 0),
            ("2000us", 2),
            (".5s", 500),
        ] {
            assert_eq!(parse(text), Ok(Some(Duration::from_millis(want_ms))), "{text}");
        }
        assert_eq!(parse("-1s"), Ok(None));
        for (text, why) in [
            ("", "time: invalid duration \"\""),
            ("abc", "time: invalid duration \"abc\""),
            ("1", "time: missing unit in duration \"1\""),
            ("1x", "time: unknown unit \"x\" in duration \"1x\""),
            (".s", "time: invalid duration \".s\""),
            ("1.2.3s", "time: invalid duration \"1.2.3s\""),
            ("99999999999999h", "time: invalid duration \"99999999999999h\""),
        ] {
            assert_eq!(parse(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn within_the_servers_limit() {
        let most = Duration::from_secs(60);
        let of = |query: &str| super::of(&Query::parse(Some(query)), most).map_err(|e| (e.code, e.message));
        for (query, want_s) in
            [("", 60), ("timeout=5s", 5), ("timeout=0s", 60), ("timeout=2m", 60), ("timeout=-1s", 60)]
        {
            assert_eq!(of(query), Ok(Duration::from_secs(want_s)), "{query}");
        }
        let message = "invalid timeout specified in the request URL - time: invalid duration \"x\"";
        assert_eq!(of("timeout=x"), Err((400, message.into())));
    }
}
