//! Token ids are exactly those of Hugging Face's tokenizer (expected ids from `tests/reference/reference.py`).

use selfrepair_core::config::{Config, CorpusConfig};
use selfrepair_model::corpus::TextTokenizer;
use selfrepair_model::{Model, ModelSource};

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn smollm2_ids_are_those_of_transformers() {
    let source = ModelSource::resolve(&Config::load(None, &[]).unwrap().model).unwrap();
    let tokenizer = TextTokenizer::of(&Model::open(source).unwrap()).unwrap();
    let cases = std::fs::read_to_string("tests/fixtures/smollm2/tokenizer.json").unwrap();
    let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
    }
}

#[test]
fn specials_come_from_the_vocabulary_and_the_configuration_and_can_be_named() {
    let source = ModelSource::resolve(&Config::load(None, &[]).unwrap().model).unwrap();
    let tokenizer = TextTokenizer::of(&Model::open(source).unwrap()).unwrap();
    // <|endoftext|> is 0 in SmolLM2's vocabulary, its BOS <|im_start|> is 1 and <|im_end|> is 2.
    let special = tokenizer.specials(&CorpusConfig::default()).unwrap();
    assert_eq!((special.separator, special.bos), (0, 1));
    let named = CorpusConfig {
        separator: Some("<|im_end|>".into()),
        bos_token: Some("<|endoftext|>".into()),
        ..Default::default()
    };
    let special = tokenizer.specials(&named).unwrap();
    assert_eq!((special.separator, special.bos), (2, 0));
    let wrong = CorpusConfig { separator: Some("<nothing>".into()), ..Default::default() };
    assert!(tokenizer.specials(&wrong).err().unwrap().to_string().contains("<nothing>"));
}
