//! Damaged documents: the same sequence of them in every run.
//!
//! What `cargo fuzz` finds by coverage, this does not; but a change that breaks a property for many inputs shows in
//! every run of the tests.

/// A sequence of numbers that a seed decides (xorshift64*).
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        // What is left of 31 bits after a remainder fits.
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Bytes at which parsers decide.
const ODD_BYTES: [u8; 16] =
    [0, 1, 7, b'\n', b' ', b'"', b'-', b'0', b'9', b'[', b'\\', b'{', 0x7f, 0x80, 0xc2, 0xff];
/// Numbers at which arithmetic ends.
const ODD_NUMBERS: [&str; 10] = [
    "0",
    "-1",
    "2147483648",
    "-2147483649",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551616",
    "1e400",
    "-0.0",
    "1e-400",
];
/// Most changes to one document.
const MAX_EDITS: usize = 5;
/// Longest copy of a part.
const MAX_COPY_BYTES: usize = 256;
/// Longest document that is made.
const MAX_BYTES: usize = 64 << 10;

/// One of `seeds`, with a few changes.
pub fn mutated(random: &mut Random, seeds: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut bytes = random.pick(seeds).clone();
    for _ in 0..=random.below(MAX_EDITS) {
        edit(random, &mut bytes, seeds, words);
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn edit(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str]) {
    let length = bytes.len();
    let at = random.below(length + 1);
    match random.below(10) {
        0 if length > 0 => bytes[at.min(length - 1)] ^= 1 << random.below(8),
        1 if length > 0 => bytes[at.min(length - 1)] = *random.pick(&ODD_BYTES),
        2 => bytes.insert(at, *random.pick(&ODD_BYTES)),
        3 => {
            let to = (at + 1 + random.below(16)).min(length);
            drop(bytes.drain(at..to));
        }
        4 => {
            let to = (at + 1 + random.below(MAX_COPY_BYTES)).min(length);
            let part = bytes[at..to].to_vec();
            let into = random.below(length + 1);
            drop(bytes.splice(into..into, part));
        }
        5 => {
            let other = random.pick(seeds);
            let from = random.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        6 => bytes.truncate(at),
        7 | 8 if !words.is_empty() => {
            let word = random.pick(words).as_bytes();
            let to = if random.below(2) == 0 { at } else { (at + word.len()).min(length) };
            drop(bytes.splice(at..to, word.iter().copied()));
        }
        _ => {
            // A number, if there is one after here, becomes another.
            let Some(from) = bytes[at..].iter().position(u8::is_ascii_digit).map(|n| n + at) else { return };
            let digits = bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
            let number = random.pick(&ODD_NUMBERS).bytes();
            drop(bytes.splice(from..from + digits, number));
        }
    }
}
