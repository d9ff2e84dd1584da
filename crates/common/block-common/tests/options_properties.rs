//! Options, for all inputs: what is printed reads back, what is flattened unflattens, and no input is too much.

use block_common::options::{DEPTH_MAX, Dict, KEY_BYTES_MAX, TEXT_BYTES_MAX, VALUES_MAX, Value};
use block_common::{Dialect, FileName, Options, OptionsError};
use proptest::prelude::*;

fn key() -> impl Strategy<Value = String> {
    "[a-zA-Z][a-zA-Z0-9_-]{0,8}"
}

fn dict_of(value: impl Strategy<Value = Value>, sizes: std::ops::Range<usize>) -> impl Strategy<Value = Dict> {
    proptest::collection::vec((key(), value), sizes).prop_map(|entries| {
        let mut dict = Dict::new();
        for (key, value) in entries {
            dict.insert(&key, value).expect("a key that is allowed");
        }
        dict
    })
}

/// Anything that JSON can say.
fn json_dict() -> impl Strategy<Value = Dict> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::Float),
        ".{0,12}".prop_map(Value::from),
    ];
    let value = scalar.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            dict_of(inner, 0..4).prop_map(Value::from),
        ]
    });
    dict_of(value, 0..6)
}

/// What dotted keys can say: text, and containers with something in them.
fn keyval_dict() -> impl Strategy<Value = Dict> {
    let value = "[^\0]{0,12}".prop_map(Value::from).prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Value::from),
            dict_of(inner, 1..4).prop_map(Value::from),
        ]
    });
    dict_of(value, 0..6)
}

proptest! {
    #[test]
    fn json_reads_back(dict in json_dict()) {
        let options = Options::from_dict(Dialect::Qmp, dict);
        prop_assert_eq!(&Options::parse_json(&options.to_string())?, &options);
        let value = serde_json::to_value(&options)?;
        prop_assert_eq!(&Options::from_json_value(&value)?, &options);
        prop_assert_eq!(&serde_json::from_value::<Options>(value)?, &options);
    }

    #[test]
    fn json_file_names_read_back(dict in json_dict()) {
        let options = Options::from_dict(Dialect::Legacy, dict);
        prop_assert_eq!(FileName::parse(&options.to_json_file_name())?, FileName::Json(options));
    }

    #[test]
    fn dotted_keys_read_back(dict in keyval_dict()) {
        let options = Options::from_dict(Dialect::Keyval, dict);
        let text = options.to_keyval().expect("dotted keys can say it");
        prop_assert_eq!(&Options::parse_keyval(&text, None)?, &options);
        let (legacy, short_forms) = Options::parse_image_opts(&text)?;
        prop_assert_eq!((legacy.into_dict(), short_forms.len()), (options.into_dict(), 0));
    }

    #[test]
    fn what_is_flattened_unflattens(dict in json_dict()) {
        let options = Options::from_dict(Dialect::Qmp, dict);
        prop_assert_eq!(&Options::unflatten(Dialect::Qmp, options.flatten())?, &options);
        for (key, value) in options.flatten() {
            prop_assert_eq!(options.lookup(&key), Some(&value));
        }
    }

    #[test]
    fn what_is_inserted_is_there(dict in json_dict(), keys in proptest::collection::vec(key(), 1..4), text in ".{0,5}") {
        let mut options = Options::from_dict(Dialect::Qmp, dict);
        let key = keys.join(".");
        match options.insert(&key, text.as_str()) {
            Ok(()) => prop_assert_eq!(options.lookup(&key), Some(&Value::from(text))),
            Err(error) => {
                prop_assert!(matches!(error, OptionsError::Inconsistent { .. }), "{}", error);
                prop_assert_eq!(options.lookup(&key), None);
            }
        }
    }

    #[test]
    fn nothing_read_is_forgotten(dict in json_dict()) {
        let options = Options::from_dict(Dialect::Qmp, dict);
        let mut reader = options.clone().reader();
        let mut keys: Vec<String> = reader.remaining().map(str::to_owned).collect();
        prop_assert_eq!(&options.clone().reader().into_rest(), &options);
        if let Some(last) = keys.pop() {
            for key in keys {
                prop_assert!(reader.take(&key).is_some() && reader.take(&key).is_none());
            }
            let error = reader.finish().expect_err("one is left");
            prop_assert_eq!(error, OptionsError::Unexpected { key: last });
        } else {
            prop_assert!(reader.finish().is_ok());
        }
    }

    #[test]
    fn no_text_panics(text in ".{0,60}") {
        read_every_way(&text);
    }

    #[test]
    fn no_json_panics(text in r#"[{\["'][\[\]{}:,"'\\a-f0-9u.eE+ tn-]{0,60}"#) {
        read_every_way(&text);
    }

    #[test]
    fn no_dotted_keys_panic(text in "[a.=,0n-]{0,60}") {
        read_every_way(&text);
    }
}

fn read_every_way(text: &str) {
    let _ = Options::parse_json(text);
    let _ = Options::parse_blockdev(text);
    let _ = Options::parse_image_opts(text);
    let _ = FileName::parse(text);
    let _ = FileName::parse(&format!("json:{text}"));
}

/// `{"a": {"a": … 1}}`, with so many dictionaries.
fn nested_json(depth: usize) -> String {
    "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth)
}

fn nested_keyval(depth: usize) -> String {
    vec!["a"; depth].join(".") + "=1"
}

#[test]
fn trust_3_depth_is_bounded() {
    let deepest = Options::parse_json(&nested_json(DEPTH_MAX)).expect("as deep as allowed");
    // Whatever recurses over options copes with the deepest.
    assert_eq!(deepest.clone().flatten().len(), 1);
    assert_eq!(Options::parse_json(&deepest.to_string()).as_ref(), Ok(&deepest));
    let value = serde_json::to_value(&deepest).expect("converts");
    assert_eq!(Options::from_json_value(&value).as_ref(), Ok(&deepest));
    assert_eq!(Options::unflatten(Dialect::Qmp, deepest.flatten()).as_ref(), Ok(&deepest));
    assert!(Options::parse_keyval(&nested_keyval(DEPTH_MAX), None).is_ok());

    for text in [nested_json(DEPTH_MAX + 1), nested_json(100_000), "[".repeat(100_000), "{\"a\":[".repeat(50_000)] {
        assert_eq!(Options::parse_json(&text), Err(OptionsError::TooDeep));
        let error = FileName::parse(&format!("json:{text}")).expect_err("too deep");
        assert_eq!(error, OptionsError::JsonFileName(OptionsError::TooDeep.into()));
    }
    let too_deep = serde_json::json!({ "a": value });
    assert_eq!(Options::from_json_value(&too_deep), Err(OptionsError::TooDeep));
    for depth in [DEPTH_MAX + 1, 100_000] {
        assert_eq!(Options::parse_keyval(&nested_keyval(depth), None), Err(OptionsError::TooDeep));
    }
    // Keys with dots nest as well.
    let dotted = format!("json:{{\"{}\": {}}}", vec!["a"; DEPTH_MAX / 2].join("."), nested_json(DEPTH_MAX / 2 + 1));
    assert_eq!(FileName::parse(&dotted), Err(OptionsError::TooDeep));
}

#[test]
fn trust_3_counts_and_lengths_are_bounded() {
    let list = |n: usize| format!("{{\"a\":[{}]}}", vec!["1"; n].join(","));
    assert!(Options::parse_json(&list(VALUES_MAX / 2)).is_ok());
    assert_eq!(Options::parse_json(&list(VALUES_MAX)), Err(OptionsError::TooMany));
    let error = FileName::parse(&format!("json:{}", list(VALUES_MAX))).expect_err("too many");
    assert_eq!(error, OptionsError::JsonFileName(OptionsError::TooMany.into()));
    let keys: String = (0..=VALUES_MAX).map(|i| format!("a{i}=,")).collect();
    assert_eq!(Options::parse_keyval(&keys, None), Err(OptionsError::TooMany));

    let long = "a".repeat(TEXT_BYTES_MAX);
    assert_eq!(Options::parse_keyval(&format!("a={long}"), None), Err(OptionsError::TooLong));
    assert_eq!(Options::parse_image_opts(&format!("a={long}")), Err(OptionsError::TooLong));
    assert_eq!(Options::parse_json(&format!("{{\"a\":\"{long}\"}}")), Err(OptionsError::TooLong));
    // Messages about long input are short.
    let error = Options::parse_json(&format!("{{\"{}\":1}}", &long[..TEXT_BYTES_MAX / 2])).expect_err("a long key");
    assert!(matches!(error, OptionsError::KeyTooLong { .. }) && error.to_string().len() < 500);
}

#[test]
fn trust_3_many_keys_with_a_long_common_path_stay_small() {
    // Flat text of this would have 60000 times the path.
    let path = vec!["a".repeat(KEY_BYTES_MAX); DEPTH_MAX - 1].join(".");
    let leaves: Vec<_> = (0..60_000).map(|i| format!("\"b{i}\":1")).collect();
    let name = format!("json:{{\"{path}\":{{{}}}}}", leaves.join(","));
    match FileName::parse(&name).expect("within the limits") {
        FileName::Json(options) => assert_eq!(options.dict().len(), 1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn parents_settings_reach_children_unless_they_have_their_own() {
    let mut options = Options::parse_blockdev("raw,file.driver=file,file.cache.direct=on").expect("parses");
    options.insert_default("file.cache.direct", false).expect("a dictionary");
    options.insert_default("file.read-only", true).expect("a dictionary");
    let expected = r#"{"driver": "raw", "file": {"driver": "file", "cache": {"direct": "on"}, "read-only": true}}"#;
    assert_eq!(options.to_string(), expected);
    let error = options.insert("driver.x", 1u64).expect_err("a scalar");
    assert_eq!(error.to_string(), "Parameters 'driver.*' used inconsistently");
    assert_eq!(options.insert("file.x..y", 1u64).expect_err("no key").to_string(), "Invalid parameter ''");
}
