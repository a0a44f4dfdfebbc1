//! Keys that take one word as well as a list of words: `ablation.hold = "erasers"`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer, SeqAccess, Visitor};

/// The values; a word that stands alone is a list of one.
pub fn one_or_list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_any(Values(PhantomData))
}

struct Values<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Values<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a word or a list of words")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<T>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
        T::deserialize(text.into_deserializer()).map(|value| vec![value])
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Activation, Config};

    #[test]
    fn a_word_alone_is_a_list_of_one() {
        let of = |set: &str| Config::load(None, &[set.to_string()]);
        assert_eq!(of("ablation.hold=erasers").unwrap().ablation.hold, ["erasers"]);
        assert_eq!(of("ablation.hold=[\"heads\", \"mlps\"]").unwrap().ablation.hold, ["heads", "mlps"]);
        assert_eq!(of("trace.save=head_z").unwrap().trace.save, [Activation::HeadZ]);
        for (wrong, words) in [
            ("trace.save=head_y", "unknown variant `head_y`"),
            ("ablation.hold=5", "expected a word or a list of words"),
            ("ablation.hold=[5]", "expected a string"),
        ] {
            let error = format!("{:#}", of(wrong).unwrap_err());
            assert!(error.contains(words), "{wrong}: {error}");
        }
    }
}
