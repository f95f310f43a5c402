//! The command line: a command, positional numbers and `--name value` pairs.

use std::{env, str::FromStr};

/// What is left to be read of the command line.
pub struct Arguments {
    words: Vec<String>,
}

impl Arguments {
    /// The arguments of this process.
    pub fn of_process() -> Self {
        Self::new(env::args().skip(1))
    }

    fn new(words: impl IntoIterator<Item = String>) -> Self {
        Self {
            words: words.into_iter().collect(),
        }
    }

    /// Takes the command's name.
    pub fn command(&mut self) -> Option<String> {
        (!self.words.is_empty()).then(|| self.words.remove(0))
    }

    /// Takes the number at this place.
    pub fn positional(&mut self, place: usize) -> Result<u64, String> {
        if self.words.len() <= place {
            return Err("a number is missing".to_owned());
        }
        parse("argument", &self.words.remove(place))
    }

    /// Takes the value of an option.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(place) = self.words.iter().position(|word| word == name) else {
            return Ok(None);
        };
        if place + 1 == self.words.len() {
            return Err(format!("{name} wants a value"));
        }
        self.words.remove(place);
        Ok(Some(self.words.remove(place)))
    }

    /// Takes the number that an option gives, or the default.
    pub fn number<T: FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        match self.text(name)? {
            Some(text) => parse(name, &text),
            None => Ok(default),
        }
    }

    /// Fails when something was not understood.
    pub fn finish(&self) -> Result<(), String> {
        match self.words.first() {
            Some(word) => Err(format!("{word:?} is not understood")),
            None => Ok(()),
        }
    }
}

/// Reads a value, naming where it came from when it can't be read.
pub fn parse<T: FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{name}: {text:?} is not understood"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Arguments {
        Arguments::new(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn options_are_found_anywhere() {
        let mut arguments = words("load --b 2 --a 1");
        assert_eq!(arguments.command().as_deref(), Some("load"));
        assert_eq!(arguments.number("--a", 0), Ok(1));
        assert_eq!(arguments.number("--b", 0), Ok(2));
        assert_eq!(arguments.number("--c", 7), Ok(7));
        assert_eq!(arguments.finish(), Ok(()));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        assert!(
            words("--a x")
                .number("--a", 0)
                .is_err_and(|error| error.contains("\"x\""))
        );
        assert!(words("--a").number("--a", 0).is_err());
        assert!(words("--typo 1").finish().is_err());
    }
}
