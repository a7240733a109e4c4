//! Lists of the indexes of an Indexed Job: `1,3-5,7`.

use std::cmp::max;

fn interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let parts: Vec<&str> = text.split('-').collect();
    if parts.len() > 2 {
        return Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        ));
    }
    let index = |text: &str| match text.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
        Ok(i) if i >= completions => Err(format!("too large index: {text:?}")),
        Ok(i) => Ok(i),
    };
    let first = index(parts[0])?;
    let Some(last) = parts.get(1) else { return Ok((first, first)) };
    let last = index(last)?;
    if first >= last {
        return Err(format!("non-increasing order, previous: {first}, current: {last}"));
    }
    Ok((first, last))
}

/// How many indexes `list` names, all of them below `completions`.
pub fn count(list: &str, completions: i64) -> Result<i64, String> {
    if list.is_empty() {
        return Ok(0);
    }
    let (mut total, mut previous) = (0, None);
    for text in list.split(',') {
        let (first, last) = interval(text, completions)?;
        if let Some(previous) = previous
            && previous >= first
        {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        total += last - first + 1;
        previous = Some(last);
    }
    Ok(total)
}

/// An error where both lists name an index. Intervals that are none are passed over: [`count`] reports them.
pub fn check_apart(completed: &str, failed: &str, completions: i64) -> Result<(), String> {
    let parse = |list: &str| -> Vec<(i64, i64)> {
        list.split(',').filter_map(|text| interval(text, completions).ok()).collect()
    };
    let (completed, failed) = (parse(completed), parse(failed));
    let (mut c, mut f) = (0, 0);
    while let (Some(done), Some(lost)) = (completed.get(c), failed.get(f)) {
        if done.0 <= lost.1 && lost.0 <= done.1 {
            return Err(format!(
                "failedIndexes and completedIndexes overlap at index: {}",
                max(done.0, lost.0)
            ));
        }
        if done.0 <= lost.0 {
            c += 1;
        } else {
            f += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(count("", 5), Ok(0));
        assert_eq!(count("0,2-4", 5), Ok(4));
        for (bad, why) in [
            ("5", "too large index: \"5\""),
            ("x", "cannot convert string to integer for index: \"x\""),
            ("2-1", "non-increasing order, previous: 2, current: 1"),
            ("1,1", "non-increasing order, previous: 1, current: 1"),
        ] {
            assert_eq!(count(bad, 5), Err(why.to_owned()), "{bad}");
        }
        assert!(count("1-2-3", 5).is_err());
        assert_eq!(check_apart("0,2-4", "1,5", 9), Ok(()));
        assert_eq!(
            check_apart("0,2-4", "1,4", 9),
            Err("failedIndexes and completedIndexes overlap at index: 4".to_owned())
        );
    }
}
