//! Warnings for the client, bounded as upstream bounds them: each once, all together at most 4096 characters;
//! beyond that each is cut to 256.

const MAX_TOTAL: usize = 4096;
const MAX_ITEM: usize = 256;

/// The warnings of a request.
#[derive(Default)]
pub struct Warnings {
    /// As given, until there are too many; then cut.
    texts: Vec<String>,
    /// Characters so far.
    total: usize,
    cutting: bool,
}

fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_ITEM) {
        text.truncate(end);
    }
}

impl Warnings {
    /// One more, if it is new, is text, and there is room.
    pub fn add(&mut self, mut text: String) {
        if text.is_empty() || text.chars().any(char::is_control) || (self.cutting && self.total >= MAX_TOTAL)
        {
            return;
        }
        if self.cutting {
            cut(&mut text);
        }
        if self.texts.contains(&text) {
            return;
        }
        self.total += text.chars().count();
        self.texts.push(text);
        if self.total > MAX_TOTAL && !self.cutting {
            self.cutting = true;
            self.texts.iter_mut().for_each(cut);
            self.total = self.texts.iter().map(|t| t.chars().count()).sum();
        }
    }

    /// All of them.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(self).texts
    }
}

/// `299 - "text"`
pub fn header(text: &str) -> String {
    format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(added: impl Iterator<Item = String>) -> Vec<usize> {
        let mut warnings = Warnings::default();
        added.for_each(|text| warnings.add(text));
        warnings.take().iter().map(|t| t.chars().count()).collect()
    }

    #[test]
    fn bounded() {
        let one = |n: usize, c: char| std::iter::repeat_n(c, n).collect::<String>();
        assert_eq!(lengths(["a", "a", "", "b\n", "c"].map(str::to_owned).into_iter()), [1, 1]);
        assert_eq!(lengths([one(3000, 'a'), one(1000, 'ä')].into_iter()), [3000, 1000]);
        assert_eq!(lengths([one(3000, 'a'), one(1100, 'ä'), one(300, 'c')].into_iter()), [256, 256, 256]);
        let many = (0..100).map(|i| format!("{i:0300}"));
        let lengths = lengths(many);
        assert!(lengths.iter().sum::<usize>() <= MAX_TOTAL + MAX_ITEM, "{lengths:?}");
    }

    #[test]
    fn quoted() {
        assert_eq!(header("say \"ä\" \\"), "299 - \"say \\\"ä\\\" \\\\\"");
    }
}
