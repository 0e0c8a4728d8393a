//! The line on which a key or an item of the file stands.
//!
//! The parser finds it: the document is read once more with a visitor that fails on purpose at the wanted node, and
//! the error carries the node's mark. So the line is right in any style of YAML, or there is none.
//!
//! Source: serde_yaml 0.9.34, src/error.rs `fix_mark` (an error without a mark gets that of the node).

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step from the root of the document towards a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

/// Counted from 1. `None` when there is no such node.
pub(crate) fn line_of(text: &str, path: &[Step<'_>]) -> Option<usize> {
    let found = Cell::new(false);
    let walk = Walk {
        path,
        found: &found,
    };
    let error = walk
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()?;
    // Any other error carries another mark.
    found
        .get()
        .then(|| error.location().map(|at| at.line()))
        .flatten()
}

/// Follows the path, and fails at the node at its end.
#[derive(Clone, Copy)]
struct Walk<'a> {
    path: &'a [Step<'a>],
    found: &'a Cell<bool>,
}

impl Walk<'_> {
    fn stop<E: Error>(&self) -> E {
        self.found.set(true);
        E::custom("found")
    }

    fn scalar<E: Error>(self) -> Result<(), E> {
        if self.path.is_empty() {
            Err(self.stop())
        } else {
            Ok(())
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any node")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (wanted, rest) = match self.path.split_first() {
            None => return Err(self.stop()),
            Some((Step::Key(wanted), rest)) => (*wanted, rest),
            Some((Step::Item(_), _)) => ("", &[][..]),
        };
        // The mark is that of the key, because its value may start some lines below.
        let key = KeySeed {
            wanted,
            stop: rest.is_empty().then_some(self),
        };
        while let Some(matches) = map.next_key_seed(key)? {
            if matches {
                map.next_value_seed(Walk { path: rest, ..self })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let (wanted, rest) = match self.path.split_first() {
            None => return Err(self.stop()),
            Some((Step::Item(wanted), rest)) => (Some(*wanted), rest),
            Some((Step::Key(_), _)) => (None, &[][..]),
        };
        for index in 0.. {
            let more = if Some(index) == wanted {
                seq.next_element_seed(Walk { path: rest, ..self })?
                    .is_some()
            } else {
                seq.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar()
    }
}

/// Compares a key, and fails at the wanted one if the path ends there.
#[derive(Clone, Copy)]
struct KeySeed<'a> {
    wanted: &'a str,
    stop: Option<Walk<'a>>,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.wanted, self.stop) {
            (true, Some(walk)) => Err(walk.stop()),
            (matches, _) => Ok(matches),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Step::{Item, Key};
    use super::*;

    const TEXT: &str = "\
# prefill: not here
version: 1
text: |
  prefill:
  - none of this
\"prefill\":
  # - url: nor this

  - http://a:1
  -
    url: http://b:2
    bootstrap_port:
      8998
  - {url: 'http://c:3',
     bootstrap_port: 1}
decode: [http://d:4,
  http://e:5]
";

    #[test]
    fn a_key_is_found_where_the_parser_sees_it() {
        let cases: [(&[Step<'_>], _); 10] = [
            (&[Key("version")], Some(2)),
            (&[Key("prefill")], Some(6)),
            (&[Key("prefill"), Item(0)], Some(9)),
            (&[Key("prefill"), Item(1)], Some(11)),
            (&[Key("prefill"), Item(1), Key("bootstrap_port")], Some(12)),
            (&[Key("prefill"), Item(2), Key("bootstrap_port")], Some(15)),
            (&[Key("decode"), Item(1)], Some(17)),
            (&[Key("decode"), Item(2)], None),
            (&[Key("url")], None),
            (&[Key("version"), Item(0)], None),
        ];
        for (path, line) in cases {
            assert_eq!(line_of(TEXT, path), line, "{path:?}");
        }
    }

    #[test]
    fn an_error_of_the_document_is_not_taken_for_the_line() {
        assert_eq!(line_of("a: 1\nb: [\n", &[Key("c")]), None);
        assert_eq!(line_of("[1, 2]: x\nc: 1\n", &[Key("c")]), None);
    }
}
