//! Makes output the same for every run: what time, chance and the machine decide gets a name in angle brackets,
//! and tables are laid out anew around those names.

use std::sync::LazyLock;

use regex::Regex;
use yare_testkit::Cluster;

/// A pattern, and what stands for it. In this order.
const RULES: &[(&str, &str)] = &[
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<uid>"),
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
    (r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "<time>"),
    (r#"(resourceVersion"?: ?)"\d+""#, r#"$1"<number>""#),
    // Names with a hash of a template, and five random letters.
    (r"-[bcdfghjklmnpqrstvwxz2456789]{8,10}-[bcdfghjklmnpqrstvwxz2456789]{5}\b", "-<hash>-<random>"),
    (r"-[bcdfghjklmnpqrstvwxz2456789]{8,10}\b", "-<hash>"),
    (r"(pod-template-hash[=:] ?)[bcdfghjklmnpqrstvwxz2456789]{8,10}\b", "$1<hash>"),
    (r"(\b[a-z]+)-[bcdfghjklmnpqrstvwxz2456789]{5}\b", "$1-<random>"),
    (r"\b10\.42\.\d+\.\d+\b", "<pod-ip>"),
    (r"\b10\.43\.0\.1\b", "<kubernetes-ip>"),
    (r"\b10\.43\.\d+\.\d+\b", "<cluster-ip>"),
    (r"(: ?|:|  )(3[0-2]\d{3})(/TCP|/UDP|\b)", "$1<node-port>$3"),
    (r"\b(sha256|yare)(:|://)[0-9a-f]{64}", "$1$2<digest>"),
    // The events of `describe`.
    (r"(?m)^(  (?:Normal|Warning) +\S+ +)\S+(?: \(x\d+ over \S+\))? +", "$1<age>  "),
    (r"(?m)^(\s*Duration: +).*$", "${1}<age>"),
    (r"(?m)\b\d+(\.\d+)?m?s ago", "<age> ago"),
];

/// Columns whose cells are ages, unless they say that there is none.
const AGES: &[&str] = &["AGE", "LAST SEEN", "FIRST SEEN", "LAST SCHEDULE", "DURATION"];

/// What kubectl before 1.33 may say of a stream, and a user never acts on: it reads before it has made all of its
/// streams, so that the empty message with which every Kubernetes server opens a session meets none.
const CHATTER: &str = "Unknown stream id 1, discarding message";

static COMPILED: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    RULES.iter().map(|(pattern, name)| (Regex::new(pattern).expect("a pattern"), *name)).collect()
});

/// The output as every run prints it.
pub fn normal(text: &str, cluster: &Cluster) -> String {
    plain(&text.replace(&cluster.path("").display().to_string(), "<home>/"))
}

fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut lines = text.lines().filter(|line| !line.ends_with(CHATTER)).peekable();
    while let Some(line) = lines.next() {
        let Some(columns) = header(line) else {
            let is_event =
                ["  Type ", "  ---- ", "  Normal ", "  Warning "].iter().any(|w| line.starts_with(w));
            let line = rules(line);
            let line = if is_event { format!("  {}", squeeze(line.trim_start())) } else { line };
            out.push_str(line.trim_end());
            out.push('\n');
            continue;
        };
        let mut rows = vec![cells(line, &columns)];
        while let Some(row) = lines.next_if(|l| is_row(l, &columns)) {
            rows.push(cells(row, &columns));
        }
        out.push_str(&table(rows));
    }
    out
}

fn rules(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, name) in COMPILED.iter() {
        if let std::borrow::Cow::Owned(changed) = pattern.replace_all(&text, *name) {
            text = changed;
        }
    }
    text
}

fn squeeze(text: &str) -> String {
    text.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("  ")
}

/// Where the columns begin, if the line is a table's head: words in capitals, two spaces or more between columns.
fn header(line: &str) -> Option<Vec<usize>> {
    let mut starts = Vec::new();
    let mut spaces = 2;
    for (at, c) in line.chars().enumerate() {
        match c {
            ' ' => spaces += 1,
            'A'..='Z' | '0'..='9' | '(' | ')' | '%' | '-' | '/' => {
                if spaces > 1 {
                    starts.push(at);
                }
                spaces = 0;
            }
            _ => return None,
        }
    }
    (starts.len() > 1 && starts[0] == 0).then_some(starts)
}

fn is_row(line: &str, columns: &[usize]) -> bool {
    let line: Vec<char> = line.chars().collect();
    !line.is_empty()
        && header(&line.iter().collect::<String>()).is_none()
        && columns[1..].iter().all(|at| line.get(at - 1).is_none_or(|c| *c == ' '))
        && line.first().is_some_and(|c| *c != '{' && *c != '}')
}

fn cells(line: &str, columns: &[usize]) -> Vec<String> {
    let line: Vec<char> = line.chars().collect();
    (0..columns.len())
        .map(|i| {
            let end = columns.get(i + 1).copied().unwrap_or(usize::MAX).min(line.len());
            line.get(columns[i].min(end)..end)
                .unwrap_or_default()
                .iter()
                .collect::<String>()
                .trim()
                .to_owned()
        })
        .collect()
}

fn table(mut rows: Vec<Vec<String>>) -> String {
    let head = rows[0].clone();
    for row in rows.iter_mut().skip(1) {
        for (cell, name) in row.iter_mut().zip(&head) {
            let is_age = AGES.contains(&name.as_str()) && cell.starts_with(|c: char| c.is_ascii_digit());
            *cell = if is_age { "<age>".to_owned() } else { rules(cell) };
        }
    }
    let widths: Vec<usize> =
        (0..head.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in &rows {
        let line: String =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}   ")).collect();
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[test]
fn normal_forms() {
    for (text, want) in [
        (
            "NAME   READY   STATUS   RESTARTS      AGE   IP           NODE\nweb-6d4cf56db6-x2b4z   1/1   x\n",
            // The row does not keep to the columns, so it is not one.
            "NAME   READY   STATUS   RESTARTS   AGE   IP   NODE\nweb-<hash>-<random>   1/1   x\n",
        ),
        (
            "NAME   AGE     IP          NODE\na      2m10s   10.42.0.7   n\nb      3s                  n\n",
            "NAME   AGE     IP         NODE\na      <age>   <pod-ip>   n\nb      <age>              n\n",
        ),
        (
            "uid: 0e3e1eb8-93b8-4c3a-ba3f-e4808e0c25e4\nresourceVersion: \"12\"\n",
            "uid: <uid>\nresourceVersion: \"<number>\"\n",
        ),
        (
            "E1130 19:44:05.686295   26624 websocket.go:296] Unknown stream id 1, discarding message\na file\n",
            "a file\n",
        ),
        ("creationTimestamp: \"2026-11-28T13:00:00Z\"\n", "creationTimestamp: \"<time>\"\n"),
        (
            "TargetPort: 80/TCP\nNodePort: web  30123/TCP\n",
            "TargetPort: 80/TCP\nNodePort: web  <node-port>/TCP\n",
        ),
        (
            "  Type    Reason     Age               From     Message\n  ----    ------     ----              ----     -------\n  Normal  Scheduled  3s (x2 over 9s)   default  Did it  now\n",
            "  Type  Reason  Age  From  Message\n  ----  ------  ----  ----  -------\n  Normal  Scheduled  <age>  default  Did it  now\n",
        ),
    ] {
        assert_eq!(plain(text), want, "{text}");
    }
}
