//! `getopt(3)` and `getopt_long(3)`: what they accept, in which order they find it, and the words of their errors.
//!
//! Options may stand behind operands, several short ones may share a dash, long ones may be cut short as long as they
//! are unique. What an option means is its caller's business.

/// A long option.
#[derive(Clone, Copy, Debug)]
pub struct Long {
    /// Its name, without the dashes.
    pub name: &'static str,
    /// Whether it takes a value.
    pub takes_value: bool,
    /// What [`Found`] calls it: the letter of the short option that does the same, or any other.
    pub letter: u8,
}

/// What there is to find.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The short options as C writes them: a colon follows those that take a value.
    pub short: &'static str,
    /// The long options.
    pub long: &'static [Long],
}

/// An option that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// Which one.
    pub letter: u8,
    /// Its value; empty for those that take none.
    pub value: &'a [u8],
}

/// The words of an error, without the program's name: `invalid option -- 'Z'`. Bytes, because arguments are.
pub type Words = Vec<u8>;

/// A walk along arguments. It is an iterator over options; what is left when it has ended are the operands.
#[derive(Clone, Debug)]
pub struct Getopt<'a> {
    known: Known,
    left: std::vec::IntoIter<&'a [u8]>,
    /// What follows in a word of short options.
    cluster: &'a [u8],
    /// Words that belonged to options, in order.
    taken: Vec<&'a [u8]>,
    operands: Vec<&'a [u8]>,
}

impl<'a> Getopt<'a> {
    /// Walk along `args`, which do not begin with the program's name.
    pub fn new(known: Known, args: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let left = args.into_iter().collect::<Vec<_>>().into_iter();
        Self { known, left, cluster: &[], taken: Vec::new(), operands: Vec::new() }
    }

    /// The operands, once there are no more options.
    pub fn operands(&self) -> &[&'a [u8]] {
        &self.operands
    }

    /// The first argument after the walk has moved all options in front of all operands, as `getopt(3)` does.
    pub fn first(&self) -> &'a [u8] {
        self.taken.first().or(self.operands.first()).copied().unwrap_or_default()
    }

    fn take(&mut self) -> Option<&'a [u8]> {
        let word = self.left.next()?;
        self.taken.push(word);
        Some(word)
    }

    fn short(&mut self) -> Option<Result<Found<'a>, Words>> {
        let (&letter, rest) = self.cluster.split_first()?;
        self.cluster = rest;
        let known = self.known.short.as_bytes();
        let at = known.iter().position(|&known| known == letter && letter != b':');
        let Some(at) = at else { return Some(Err(quoted(b"invalid option -- ", &[letter]))) };
        if known.get(at + 1) != Some(&b':') {
            return Some(Ok(Found { letter, value: &[] }));
        }
        let value = if rest.is_empty() { self.take() } else { Some(rest) };
        self.cluster = &[];
        let missing = || quoted(b"option requires an argument -- ", &[letter]);
        Some(value.map(|value| Found { letter, value }).ok_or_else(missing))
    }

    fn long(&mut self, word: &'a [u8]) -> Result<Found<'a>, Words> {
        let (name, value) = match word.iter().position(|&byte| byte == b'=') {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        let dashed = |name: &[u8]| [b"--", name].concat();
        let long = self.find_long(name).map_err(|possible| match possible.is_empty() {
            true => quoted(b"unrecognized option ", &dashed(word)),
            false => {
                let names: Vec<_> = possible.iter().map(|long| format!("'--{}'", long.name)).collect();
                let names = format!(" is ambiguous; possibilities: {}", names.join(" "));
                [quoted(b"option ", &dashed(word)), names.into_bytes()].concat()
            }
        })?;
        let about = |words: &str| [&quoted(b"option ", &dashed(long.name.as_bytes())), words.as_bytes()].concat();
        let letter = long.letter;
        match (long.takes_value, value) {
            (false, None) => Ok(Found { letter, value: &[] }),
            (false, Some(_)) => Err(about(" doesn't allow an argument")),
            (true, Some(value)) => Ok(Found { letter, value }),
            (true, None) => {
                let value = self.take().ok_or_else(|| about(" requires an argument"))?;
                Ok(Found { letter, value })
            }
        }
    }

    /// The option that `name` means, or all that it may mean.
    fn find_long(&self, name: &[u8]) -> Result<Long, Vec<Long>> {
        let long = self.known.long.iter();
        let possible: Vec<_> = long.copied().filter(|long| long.name.as_bytes().starts_with(name)).collect();
        match possible.iter().find(|long| long.name.as_bytes() == name).or(possible.first()) {
            Some(&one) if possible.len() == 1 || one.name.as_bytes() == name => Ok(one),
            _ => Err(possible),
        }
    }
}

impl<'a> Iterator for Getopt<'a> {
    type Item = Result<Found<'a>, Words>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if !self.cluster.is_empty() {
                return self.short();
            }
            let word = self.left.next()?;
            match word {
                b"--" => {
                    self.taken.push(word);
                    self.operands.extend(self.left.by_ref());
                }
                [b'-', b'-', long @ ..] if !self.known.long.is_empty() => {
                    self.taken.push(word);
                    return Some(self.long(long));
                }
                [b'-', cluster @ ..] if !cluster.is_empty() => {
                    self.taken.push(word);
                    self.cluster = cluster;
                }
                _ => self.operands.push(word),
            }
        }
    }
}

fn quoted(words: &[u8], what: &[u8]) -> Words {
    [words, b"'", what, b"'"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known {
        short: "vP:q",
        long: &[
            Long { name: "cmd", takes_value: true, letter: b'c' },
            Long { name: "cache", takes_value: true, letter: b't' },
            Long { name: "read-only", takes_value: false, letter: b'r' },
            Long { name: "read", takes_value: false, letter: b'R' },
        ],
    };

    /// What is found: options as `v`, `P=5` or the error; then the operands, and the first word after permuting.
    fn check(known: Known, args: &str, found: &[&str], operands: &str, first: &str) {
        let words: Vec<&[u8]> = args.split_ascii_whitespace().map(str::as_bytes).collect();
        let mut walk = Getopt::new(known, words.iter().copied());
        let mut seen = Vec::new();
        for option in walk.by_ref() {
            seen.push(match option {
                Ok(Found { letter, value: [] }) => char::from(letter).to_string(),
                Ok(Found { letter, value }) => format!("{}={}", char::from(letter), String::from_utf8_lossy(value)),
                Err(words) => String::from_utf8_lossy(&words).into_owned(),
            });
        }
        assert_eq!(seen, found, "{args}");
        let left: Vec<_> = walk.operands().iter().map(|word| String::from_utf8_lossy(word)).collect();
        assert_eq!((left.join(" ").as_str(), walk.first()), (operands, first.as_bytes()), "{args}");
    }

    const SHORT: Known = Known { long: &[], ..KNOWN };

    #[test]
    fn options_may_stand_anywhere() {
        check(SHORT, "0 4k -v", &["v"], "0 4k", "-v");
        check(SHORT, "0 -P 5 4k", &["P=5"], "0 4k", "-P");
        check(SHORT, "-vqP5 0", &["v", "q", "P=5"], "0", "-vqP5");
        check(SHORT, "-P -1 0", &["P=-1"], "0", "-P");
        check(SHORT, "0 -- -v", &[], "0 -v", "--");
        check(SHORT, "0 -", &[], "0 -", "0");
        check(SHORT, "", &[], "", "");
    }

    #[test]
    fn errors_have_the_librarys_words() {
        check(SHORT, "0 -1", &["invalid option -- '1'"], "0", "-1");
        check(SHORT, "-P", &["option requires an argument -- 'P'"], "", "-P");
        check(SHORT, "--v", &["invalid option -- '-'", "v"], "", "--v");
        check(SHORT, "-:", &["invalid option -- ':'"], "", "-:");
    }

    #[test]
    fn long_options_may_be_cut_short() {
        check(KNOWN, "--cm x --cache=y --cmd", &["c=x", "t=y", "option '--cmd' requires an argument"], "", "--cm");
        check(KNOWN, "--read --read-", &["R", "r"], "", "--read");
        check(KNOWN, "--c", &["option '--c' is ambiguous; possibilities: '--cmd' '--cache'"], "", "--c");
        check(KNOWN, "--bogus=1 x", &["unrecognized option '--bogus=1'"], "x", "--bogus=1");
        check(KNOWN, "--read-=1", &["option '--read-only' doesn't allow an argument"], "", "--read-=1");
    }
}
