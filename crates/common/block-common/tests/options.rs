//! Options against the field: each expected string was printed by QEMU's tools, version 10.0.2, for the input next to it.
//!
//! Nothing runs those tools here. Where this crate deliberately differs, the case says so.

use block_common::options::DriverKind;
use block_common::{
    AioMode, ChildOrNull, ChildSpec, DetectZeroes, Dialect, DiscardMode, FileName, OptionReader, Options, OptionsError,
};

/// What a node of the tests' own understands: the generic options, those of `null-co`, `raw`, and `quorum`.
fn read_node(options: Options) -> Result<(), OptionsError> {
    let reader = options.reader();
    read_node_with(reader)
}

fn read_node_with(mut reader: OptionReader) -> Result<(), OptionsError> {
    let driver = reader.require_str("driver")?;
    let kind = if driver == "null-co" { DriverKind::Protocol } else { DriverKind::Format };
    reader.set_driver(kind, driver.as_str());
    reader.take_node_name("node-name")?;
    reader.take_bool("read-only")?;
    reader.take_enum::<DiscardMode>("discard")?;
    reader.take_enum::<DetectZeroes>("detect-zeroes")?;
    reader.take_dict("cache", |cache| {
        cache.take_bool("direct")?;
        cache.take_bool("no-flush")
    })?;
    match driver.as_str() {
        "null-co" => {
            reader.take_size("size")?;
            reader.take_u64("latency-ns")?;
            reader.take_bool("read-zeroes")?;
        }
        "raw" => {
            reader.take_size("offset")?;
            reader.take_size("size")?;
            read_child(reader.require_child("file")?)?;
        }
        "qcow2" => {
            read_child(reader.require_child("file")?)?;
            if let Some(ChildOrNull::Child(child)) = reader.take_child_or_null("backing")? {
                read_child(child)?;
            }
        }
        "file" => {
            reader.require_str("filename")?;
            reader.take_enum::<AioMode>("aio")?;
        }
        "quorum" => {
            reader.require_i64("vote-threshold")?;
            let children = reader.take_list("children", |item| read_child(item.into_child()?))?;
            children.ok_or_else(|| reader.missing("children"))?;
        }
        "nbd" => {
            reader.take_u32("reconnect-delay")?;
        }
        _ => return Err(OptionsError::BadValue { key: "driver".into(), value: driver }),
    }
    reader.finish()
}

fn read_child(child: ChildSpec) -> Result<(), OptionsError> {
    match child {
        ChildSpec::Reference(_) => Ok(()),
        ChildSpec::Inline(options) => read_node(options),
    }
}

/// What `--blockdev` says to `text`; nothing if it has no complaint.
fn check_blockdev(text: &str, expected: &str) {
    let message = Options::parse_blockdev(text).and_then(read_node).map_or_else(|e| e.to_string(), |()| String::new());
    assert_eq!(message, expected, "--blockdev {text}");
}

fn check_image_opts(text: &str, expected: &str) {
    let message = Options::parse_image_opts(text)
        .and_then(|(options, _)| read_node(options))
        .map_or_else(|e| e.to_string().lines().next().unwrap_or("").to_owned(), |()| String::new());
    assert_eq!(message, expected, "--image-opts {text}");
}

fn check_file_name(name: &str, expected: &str) {
    let message = match FileName::parse(name) {
        Ok(FileName::Json(options)) => read_node(options)
            .map_or_else(|e| e.to_string().lines().next().unwrap_or("").to_owned(), |()| String::new()),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    };
    assert_eq!(message, expected, "{name}");
}

#[test]
fn dotted_keys_are_read_and_refused_as_blockdev_does() {
    for accepted in [
        "driver=null-co,node-name=a",
        "null-co,node-name=a",
        "driver=null-co,node-name=a,",
        "driver=null-co,node-name=a,size=0x100",
        "driver=null-co,node-name=a,size=020000",
        "driver=null-co,node-name=a,size= 7",
        "driver=null-co,node-name=a,latency-ns= 1",
        "driver=null-co,node-name=a,latency-ns=+1",
        "driver=null-co,node-name=a,latency-ns=18446744073709551615",
        "driver=null-co,node-name=a,read-zeroes=yes",
        "driver=null-co,node-name=a,read-zeroes=on",
        "driver=null-co,node-name=a,read-zeroes=y",
        "driver=null-co,node-name=a,read-zeroes=true",
        "driver=null-co,node-name=a,read-zeroes=no",
        "driver=null-co,node-name=a,read-zeroes=n",
        "driver=null-co,node-name=a,read-zeroes=false",
        "driver=null-co,node-name=1a,node-name=b",
        "driver=null-co,cache.direct=on,node-name=a",
        "driver=quorum,vote-threshold=1,children.00.driver=null-co,children.0.driver=null-co",
        // QEMU has no suffixes here; they do no harm.
        "driver=null-co,node-name=a,size=1.5G",
        "driver=null-co,node-name=a,size=1G",
    ] {
        check_blockdev(accepted, "");
    }
    let refused = [
        ("driver=null-co,node-name=1a", "Invalid node-name: '1a'"),
        ("driver=null-co,node-name=a2345678901234567890123456789012", "Node name too long"),
        ("driver=null-co,node-name=a,size=12x", "Parameter 'size' expects integer"),
        ("driver=null-co,node-name=a,size=08", "Parameter 'size' expects integer"),
        ("driver=null-co,node-name=a,size=", "Parameter 'size' expects integer"),
        ("driver=null-co,node-name=a,size=-1", "Value '-1' is out of range for parameter 'size'"),
        ("driver=null-co,node-name=a,size=9223372036854775808", "Parameter 'size' expects integer"),
        ("driver=null-co,node-name=a,size=18446744073709551616", "Parameter 'size' expects integer"),
        ("driver=null-co,node-name=a,size.a=1", "Parameters 'size.*' are unexpected"),
        ("driver=null-co,node-name=a,latency-ns.a=1", "Parameters 'latency-ns.*' are unexpected"),
        ("driver=null-co,node-name=a,read-zeroes.a=1", "Parameters 'read-zeroes.*' are unexpected"),
        ("driver=null-co,node-name.a=1", "Parameters 'node-name.*' are unexpected"),
        ("driver=null-co,node-name=a,discard.a=1", "Parameters 'discard.*' are unexpected"),
        ("driver=null-co,node-name=a,latency-ns=18446744073709551616", "Parameter 'latency-ns' expects integer"),
        ("driver=null-co,node-name=a,latency-ns=1k", "Parameter 'latency-ns' expects integer"),
        ("driver=null-co,node-name=a,latency-ns=1 ", "Parameter 'latency-ns' expects integer"),
        ("driver=null-co,node-name=a,read-zeroes=1", "Parameter 'read-zeroes' expects 'on' or 'off'"),
        ("driver=null-co,node-name=a,read-zeroes=ON", "Parameter 'read-zeroes' expects 'on' or 'off'"),
        ("driver=null-co,node-name=a,read-zeroes=", "Parameter 'read-zeroes' expects 'on' or 'off'"),
        ("driver=null-co,node-name=a,read-zeroes", "Expected '=' after parameter 'read-zeroes'"),
        ("driver=null-co,node-name=a,noread-zeroes", "Expected '=' after parameter 'noread-zeroes'"),
        ("driver=null-co,node-name=a,foo=1", "Parameter 'foo' is unexpected"),
        ("node-name=a", "Parameter 'driver' is missing"),
        ("", "Parameter 'driver' is missing"),
        ("driver=bogus,node-name=a", "Parameter 'driver' does not accept value 'bogus'"),
        ("driver=,node-name=a", "Parameter 'driver' does not accept value ''"),
        ("driver=null-co,,node-name=a", "Parameter 'driver' does not accept value 'null-co,node-name=a'"),
        ("[\"a\"]", "Parameter 'driver' does not accept value '[\"a\"]'"),
        (" {}", "Parameter 'driver' does not accept value ' {}'"),
        (",", "Invalid parameter ''"),
        (",driver=null-co", "Invalid parameter ''"),
        ("=,driver=null-co", "Invalid parameter ''"),
        ("null-co,,x=1", "Invalid parameter ''"),
        ("driver=null-co,=x", "Invalid parameter ''"),
        ("driver=null-co,.=x", "Invalid parameter '.'"),
        ("driver=null-co,a.=x", "Invalid parameter 'a.'"),
        ("driver=null-co,a..b=x", "Invalid parameter 'a..b'"),
        ("driver=null-co,a b=x", "Invalid parameter 'a b'"),
        ("driver=null-co,1a=x", "Invalid parameter '1a'"),
        ("driver=null-co,__x=x", "Invalid parameter '__x'"),
        ("driver=quorum,0.a=1", "Invalid parameter '0.a'"),
        ("driver=quorum,children.-1=1", "Invalid parameter 'children.-1'"),
        ("driver=quorum,children.0a=1", "Invalid parameter 'children.0a'"),
        ("driver=null-co,a_b=x", "Parameter 'a_b' is unexpected"),
        ("driver=null-co,a=x,a.b=y", "Parameters 'a.*' used inconsistently"),
        ("driver=null-co,a.b=x,a=y", "Parameters 'a.*' used inconsistently"),
        ("driver=null-co,a.0=x,a.b=y", "Parameters 'a.*' used inconsistently"),
        ("driver=null-co,a.b.c=1,a.b=2", "Parameters 'a.b.*' used inconsistently"),
        ("driver=null-co,a.b.c=1,a.b.0=2", "Parameters 'a.b.*' used inconsistently"),
        ("driver=null-co,a.1=x", "Parameter 'a.0' missing"),
        ("driver=null-co,a.0=x,a.2=y", "Parameter 'a.1' missing"),
        ("driver=null-co,a.0=x,a.00=y", "Parameter 'a' is unexpected"),
        ("driver=null-co,a.99999999999999999999=1", "Parameter 'a.0' missing"),
        ("driver=null-co,cache.bogus=on,node-name=a", "Parameter 'cache.bogus' is unexpected"),
        ("driver=null-co,cache=on,node-name=a", "Invalid parameter type for 'cache', expected: object"),
        ("driver=null-co,discard=bogus", "Parameter 'discard' does not accept value 'bogus'"),
        ("driver=null-co,discard=on", "Parameter 'discard' does not accept value 'on'"),
        ("driver=null-co,discard=UNMAP", "Parameter 'discard' does not accept value 'UNMAP'"),
        ("driver=null-co,detect-zeroes=xx", "Parameter 'detect-zeroes' does not accept value 'xx'"),
        ("driver=raw,node-name=a", "Parameter 'file' is missing"),
        ("driver=raw,node-name=a,file.0=x", "Invalid parameter type for 'file', expected: BlockdevRef"),
        ("driver=raw,node-name=a,file.driver=null-co,file.foo=3", "Parameter 'file.foo' is unexpected"),
        ("driver=raw,node-name=a,file.driver=null-co,file.size=x", "Parameter 'file.size' expects integer"),
        ("driver=raw,node-name=a,file.driver=file", "Parameter 'file.filename' is missing"),
        ("driver=raw,node-name=a,file.foo=1", "Parameter 'file.driver' is missing"),
        ("driver=quorum,vote-threshold=1,children.0=x,children.2=z", "Parameter 'children.1' missing"),
        (
            "driver=quorum,vote-threshold=1,children.0=x,children.1.driver=null-co,children.1.foo=3",
            "Parameter 'children.1.foo' is unexpected",
        ),
        ("driver=quorum,vote-threshold=1,children.0.a=x", "Parameter 'children.0.driver' is missing"),
        ("driver=quorum,vote-threshold=1,children=x", "Invalid parameter type for 'children', expected: array"),
        ("driver=quorum,vote-threshold=1,children.a=x", "Invalid parameter type for 'children', expected: array"),
        ("driver=quorum,vote-threshold=1", "Parameter 'children' is missing"),
        ("driver=nbd,reconnect-delay=4294967296", "Parameter 'reconnect-delay' expects uint32_t"),
        ("driver=nbd,reconnect-delay=x", "Parameter 'reconnect-delay' expects integer"),
        // QEMU takes this for 2^64 - 1 and leaves it to the driver.
        ("driver=null-co,node-name=a,latency-ns=-1", "Parameter 'latency-ns' expects integer"),
    ];
    for (text, message) in refused {
        check_blockdev(text, message);
    }
    check_blockdev(&format!("driver=null-co,{}=1", "a".repeat(127)), &unexpected(&"a".repeat(127)));
    check_blockdev(
        &format!("driver=null-co,{}=1", "a".repeat(128)),
        &format!("Parameter '{}' is too long", "a".repeat(128)),
    );
}

fn unexpected(key: &str) -> String {
    format!("Parameter '{key}' is unexpected")
}

#[test]
fn json_is_read_and_refused_as_blockdev_does() {
    for accepted in [
        r#"{"driver":"null-co","node-name":"a"}"#,
        "{'driver':'null-co','node-name':'a'}",
        "{\"driver\":\t\"null-co\"} \r\n",
        r#"{"driver":"nul\u006c-co","read-zeroes":true,"latency-ns":18446744073709551615}"#,
        r#"{"driver":"raw","file":"nope"}"#,
        r#"{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"},"backing":null}"#,
        r#"{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"},"backing":"b"}"#,
    ] {
        check_blockdev(accepted, "");
    }
    let refused = [
        (r#"{"driver":"null-co","node-name":"1a"}"#, "Invalid node-name: '1a'"),
        (r#"{"driver":"null-co","size":"1G"}"#, "Invalid parameter type for 'size', expected: integer"),
        (r#"{"driver":"null-co","size":1.5}"#, "Invalid parameter type for 'size', expected: integer"),
        (r#"{"driver":"null-co","size":1.0}"#, "Invalid parameter type for 'size', expected: integer"),
        (r#"{"driver":"null-co","size":1e3}"#, "Invalid parameter type for 'size', expected: integer"),
        (r#"{"driver":"null-co","size":-1}"#, "Value '-1' is out of range for parameter 'size'"),
        (r#"{"driver":"null-co","size":9223372036854775808}"#, "Invalid parameter type for 'size', expected: integer"),
        (r#"{"driver":"null-co","latency-ns":18446744073709551616}"#, "Parameter 'latency-ns' expects uint64"),
        (r#"{"driver":"null-co","latency-ns":1.0}"#, "Parameter 'latency-ns' expects uint64"),
        (r#"{"driver":"null-co","latency-ns":"1"}"#, "Parameter 'latency-ns' expects uint64"),
        (r#"{"driver":"null-co","latency-ns":null}"#, "Parameter 'latency-ns' expects uint64"),
        (r#"{"driver":"null-co","latency-ns":{}}"#, "Parameter 'latency-ns' expects uint64"),
        (r#"{"driver":"null-co","read-zeroes":"on"}"#, "Invalid parameter type for 'read-zeroes', expected: boolean"),
        (r#"{"driver":"null-co","read-zeroes":1}"#, "Invalid parameter type for 'read-zeroes', expected: boolean"),
        (r#"{"driver":"null-co","node-name":5}"#, "Invalid parameter type for 'node-name', expected: string"),
        (r#"{"driver":5}"#, "Invalid parameter type for 'driver', expected: string"),
        (r#"{"driver":null}"#, "Invalid parameter type for 'driver', expected: string"),
        (r#"{"driver":["null-co"]}"#, "Invalid parameter type for 'driver', expected: string"),
        (r#"{"driver":"bogus"}"#, "Parameter 'driver' does not accept value 'bogus'"),
        (r#"{"node-name":"a"}"#, "Parameter 'driver' is missing"),
        ("{}", "Parameter 'driver' is missing"),
        (r#"{"driver":"null-co","sizee":"1"}"#, "Parameter 'sizee' is unexpected"),
        (r#"{"driver":"null-co","1a":1}"#, "Parameter '1a' is unexpected"),
        (r#"{"driver":"null-co","a.b":1}"#, "Parameter 'a.b' is unexpected"),
        (r#"{"driver":"null-co","cache.direct":true}"#, "Parameter 'cache.direct' is unexpected"),
        (r#"{"driver":"null-co","cache":{"b c":1}}"#, "Parameter 'cache.b c' is unexpected"),
        (r#"{"driver":"null-co","cache":{"direct":true,"bogus":1}}"#, "Parameter 'cache.bogus' is unexpected"),
        (
            r#"{"driver":"null-co","cache":{"direct":"on"}}"#,
            "Invalid parameter type for 'cache.direct', expected: boolean",
        ),
        (r#"{"driver":"null-co","cache":true}"#, "Invalid parameter type for 'cache', expected: object"),
        (r#"{"driver":"null-co","cache":null}"#, "Invalid parameter type for 'cache', expected: object"),
        (r#"{"driver":"null-co","discard":"bogus"}"#, "Parameter 'discard' does not accept value 'bogus'"),
        (r#"{"driver":"null-co","discard":true}"#, "Invalid parameter type for 'discard', expected: string"),
        (r#"{"driver":"raw"}"#, "Parameter 'file' is missing"),
        (r#"{"driver":"raw","file":5}"#, "Invalid parameter type for 'file', expected: BlockdevRef"),
        (r#"{"driver":"raw","file":null}"#, "Invalid parameter type for 'file', expected: BlockdevRef"),
        (r#"{"driver":"raw","file":[]}"#, "Invalid parameter type for 'file', expected: BlockdevRef"),
        (r#"{"driver":"raw","file":true}"#, "Invalid parameter type for 'file', expected: BlockdevRef"),
        (r#"{"driver":"raw","file":{}}"#, "Parameter 'file.driver' is missing"),
        (r#"{"driver":"raw","file":{"driver":"null-co","foo":3}}"#, "Parameter 'file.foo' is unexpected"),
        (
            r#"{"driver":"raw","file":{"driver":"null-co","size":"x"}}"#,
            "Invalid parameter type for 'file.size', expected: integer",
        ),
        (
            r#"{"driver":"qcow2","file":"x","backing":5}"#,
            "Invalid parameter type for 'backing', expected: BlockdevRefOrNull",
        ),
        (
            r#"{"driver":"quorum","vote-threshold":1,"children":{}}"#,
            "Invalid parameter type for 'children', expected: array",
        ),
        (
            r#"{"driver":"quorum","vote-threshold":1,"children":["nope",{"driver":"null-co","foo":1}]}"#,
            "Parameter 'children[1].foo' is unexpected",
        ),
        (
            r#"{"driver":"quorum","vote-threshold":1,"children":[{"driver":"null-co","size":"x"}]}"#,
            "Invalid parameter type for 'children[0].size', expected: integer",
        ),
        (r#"{"driver":"quorum","vote-threshold":1,"children":[{}]}"#, "Parameter 'children[0].driver' is missing"),
        // QEMU calls an element of a list 'null'.
        (
            r#"{"driver":"quorum","vote-threshold":1,"children":[5]}"#,
            "Invalid parameter type for 'children[0]', expected: BlockdevRef",
        ),
        (r#"{"driver":"nbd","reconnect-delay":-1}"#, "Parameter 'reconnect-delay' expects uint32_t"),
        (r#"{"driver":"nbd","reconnect-delay":"x"}"#, "Parameter 'reconnect-delay' expects uint64"),
        (r#"{"driver":"nbd","reconnect-delay":4294967296}"#, "Parameter 'reconnect-delay' expects uint32_t"),
        // QEMU takes this for 2^64 - 1 and leaves it to the driver.
        (r#"{"driver":"null-co","latency-ns":-1}"#, "Parameter 'latency-ns' expects uint64"),
        // QEMU has no order of keys and names either; here it is the first.
        (r#"{"driver":"null-co","foo":1,"bar":2}"#, "Parameter 'foo' is unexpected"),
    ];
    for (text, message) in refused {
        check_blockdev(text, message);
    }
}

#[test]
fn json_that_is_none_is_refused_as_blockdev_does() {
    let refused = [
        ("{", "JSON parse error, premature EOI"),
        (r#"{"a""#, "JSON parse error, premature EOI"),
        (r#"{"driver":"null-co"} x"#, "Expecting at most one JSON value"),
        (r#"{"a":1}}"#, "Expecting at most one JSON value"),
        ("{}{}", "Expecting at most one JSON value"),
        (r#"{"driver":"null-co","driver":"file"}"#, "JSON parse error, duplicate key"),
        (r#"{"a":}"#, "JSON parse error, expecting value"),
        ("{,}", "JSON parse error, expecting value"),
        (r#"{"a":1,}"#, "JSON parse error, expecting value"),
        (r#"{"a":[1,]}"#, "JSON parse error, expecting value"),
        ("{a:1}", "JSON parse error, invalid keyword 'a'"),
        (r#"{"a":tru}"#, "JSON parse error, invalid keyword 'tru'"),
        (r#"{"a":nul}"#, "JSON parse error, invalid keyword 'nul'"),
        ("{1:2}", "JSON parse error, key is not a string in object"),
        (r#"{"a" 1}"#, "JSON parse error, missing : in object pair"),
        (r#"{"a":1 "b":2}"#, "JSON parse error, expected separator in dict"),
        (r#"{"a":0x10}"#, "JSON parse error, expected separator in dict"),
        (r#"{"a":1]"#, "JSON parse error, expected separator in dict"),
        (r#"{"a":[1 2]}"#, "JSON parse error, expected separator in list"),
        (r#"{"a":01}"#, "JSON parse error, stray '01'"),
        (r#"{"a":-}"#, "JSON parse error, stray '-}'"),
        (r#"{"a":1.}"#, "JSON parse error, stray '1.}'"),
        (r#"{"a":1e}"#, "JSON parse error, stray '1e}'"),
        (r#"{"a":.5}"#, "JSON parse error, stray '.'"),
        (r#"{"a":+5}"#, "JSON parse error, stray '+'"),
        (r#"{"a":%d}"#, "JSON parse error, stray '%'"),
        (r#"{"a":1;}"#, "JSON parse error, stray ';'"),
        (r#"{"a":NaN}"#, "JSON parse error, stray 'N'"),
        (r#"{"a":"x}"#, "JSON parse error, stray '\"x}'"),
        ("{\"a\":\"\t\"}", "JSON parse error, stray '\"\t'"),
        ("{\"a\":\u{b}1}", "JSON parse error, stray '\u{b}'"),
        (r#"{"a":"\q"}"#, "JSON parse error, invalid escape sequence in string"),
        (r#"{"a":"\ud800"}"#, r"JSON parse error, \ud800 is not a valid Unicode character"),
        (r#"{"a":"\ude00"}"#, r"JSON parse error, \ude00 is not a valid Unicode character"),
        (r#"{"a":"\u12"}"#, "JSON parse error, \\u12\"} is not a valid Unicode character"),
        // QEMU reads infinity.
        (r#"{"a":1e400}"#, "JSON parse error, number '1e400' is out of range"),
    ];
    for (text, message) in refused {
        check_blockdev(text, message);
    }
    for accepted in [r#"{"a":"\ud83d\ude00"}"#, r#"{"a":"\u0000"}"#, r"{'a':'\''}", r#"{'a':'"'}"#, r#"{"a":"\'\/\b"}"#]
    {
        check_blockdev(accepted, "Parameter 'driver' is missing");
    }
}

#[test]
fn json_errors_say_where() {
    let check = |text: &str, offset: usize| match Options::parse_json(text) {
        Err(OptionsError::Json(error)) => assert_eq!(error.offset(), offset, "{text}: {}", error.kind()),
        other => panic!("{text}: {other:?}"),
    };
    check("  ", 2);
    check("{'a':1} x", 8);
    check("{'a':1, 'a':2}", 8);
    check("{'a':1 2}", 7);
    check("{'a':'ä\\q'}", 8);
    check("{'a':[1,]}", 8);
}

#[test]
fn image_opts_are_read_and_refused_as_the_tools_do() {
    for accepted in [
        "driver=null-co",
        "driver=null-co,",
        "driver=null-co,size=1.5G",
        "driver=null-co,size=010k",
        "driver=null-co,size=1,size=1k",
        "driver=null-co,read-zeroes",
        "read-zeroes,driver=null-co",
        "driver=null-co,noread-zeroes",
        "driver=raw,file=x",
        "driver=raw,file.driver=file,file.filename=a.raw,discard=on",
        "driver=raw,file.driver=file,file.filename=a.raw,discard=off,offset=1M,size=1.5M",
        "file.driver=null-co,driver=raw,file.read-zeroes",
        "driver=quorum,vote-threshold=1,children.0.driver=null-co,children.1.driver=null-co",
    ] {
        check_image_opts(accepted, "");
    }
    let refused = [
        ("driver=null-co,size=-1", "Value '-1' is out of range for parameter 'size'"),
        ("driver=null-co,size=16E", "Value '16E' is out of range for parameter 'size'"),
        ("driver=null-co,size=12x", "Parameter 'size' expects a non-negative number below 2^64"),
        ("driver=null-co,size=", "Parameter 'size' expects a non-negative number below 2^64"),
        ("driver=null-co,size=1.5", "Parameter 'size' expects a non-negative number below 2^64"),
        ("driver=null-co,latency-ns=1k", "Parameter 'latency-ns' expects a number"),
        ("driver=null-co,latency-ns=abc", "Parameter 'latency-ns' expects a number"),
        ("driver=null-co,read-zeroes=1", "Parameter 'read-zeroes' expects 'on' or 'off'"),
        ("driver=null-co,read-zeroes=", "Parameter 'read-zeroes' expects 'on' or 'off'"),
        ("driver=null-co,foo=1", "Block protocol 'null-co' doesn't support the option 'foo'"),
        ("driver=null-co,foo.bar=2", "Block protocol 'null-co' doesn't support the option 'foo.bar'"),
        ("driver=null-co,nono", "Block protocol 'null-co' doesn't support the option 'no'"),
        ("driver=null-co,help", "Block protocol 'null-co' doesn't support the option 'help'"),
        ("driver=raw,file=x,foo=1", "Block format 'raw' does not support the option 'foo'"),
        ("driver=raw", "A block device must be specified for \"file\""),
        ("driver=raw,file=x,node-name=1a", "Invalid node-name: '1a'"),
        ("driver=raw,file=x,read-only=bogus", "Parameter 'read-only' expects 'on' or 'off'"),
        ("driver=raw,file=x,cache.direct=bogus", "Parameter 'cache.direct' expects 'on' or 'off'"),
        // Here QEMU speaks of the driver, names no option, or takes 8E for nothing; this crate names the option.
        ("driver=raw,file=x,cache.bogus=on", "Parameter 'cache.bogus' is unexpected"),
        ("driver=raw,file=x,discard=bogus", "Parameter 'discard' does not accept value 'bogus'"),
        ("driver=raw,file=x,a..b=3", "Invalid parameter 'a..b'"),
        ("driver=raw,file=x,=3", "Invalid parameter ''"),
        ("driver=null-co,no", "Invalid parameter ''"),
        ("driver=null-co,size=8E", "Value '8E' is out of range for parameter 'size'"),
        ("json:{}", "Invalid parameter 'json:{}'"),
        ("driver=raw,file.driver=null-co,file=x", "Parameters 'file.*' used inconsistently"),
        (
            "driver=quorum,vote-threshold=1,children.0.driver=null-co,children.2.driver=null-co",
            "Parameter 'children.1' missing",
        ),
    ];
    for (text, message) in refused {
        check_image_opts(text, message);
    }
}

#[test]
fn short_forms_are_reported() {
    let (options, short) = Options::parse_image_opts("a,nob,c=noc,node-name=x").expect("parses");
    assert_eq!(options.to_string(), r#"{"a": "on", "b": "off", "c": "noc", "node-name": "x"}"#);
    assert_eq!(short[0].to_string(), "short-form boolean option 'a' deprecated\nPlease use a=on instead");
    assert_eq!(short[1].to_string(), "short-form boolean option 'nob' deprecated\nPlease use b=off instead");
    assert_eq!(short.len(), 2);
}

#[test]
fn json_file_names_are_read_and_refused_as_the_tools_do() {
    for accepted in [
        r#"json:{"driver":"null-co"}"#,
        r#"json: {"driver":"null-co"}"#,
        r#"json:{"driver":"null-co","size":"1G"}"#,
        r#"json:{"driver":"null-co","size":1024}"#,
        r#"json:{"driver":"null-co","read-zeroes":"on"}"#,
        r#"json:{"driver":"raw","file.driver":"null-co","file":{"size":5}}"#,
        r#"json:{"driver":"qcow2","file":"x","backing":null}"#,
        r#"json:{"driver":"qcow2","file":"x","backing":""}"#,
    ] {
        check_file_name(accepted, "");
    }
    let refused = [
        ("json:", "Could not parse the JSON options: Expecting a JSON value"),
        ("json:{", "Could not parse the JSON options: JSON parse error, premature EOI"),
        (r#"json:{"driver":"null-co"} x"#, "Could not parse the JSON options: Expecting at most one JSON value"),
        (r#"json:{"driver":"a","driver":"x"}"#, "Could not parse the JSON options: JSON parse error, duplicate key"),
        ("json:[1]", "Invalid JSON object given"),
        ("json:1", "Invalid JSON object given"),
        (r#"json:{"driver":"null-co","size":1.5}"#, "Parameter 'size' expects a non-negative number below 2^64"),
        (r#"json:{"driver":"null-co","size":true}"#, "Parameter 'size' expects a non-negative number below 2^64"),
        (r#"json:{"driver":"null-co","read-zeroes":1}"#, "Parameter 'read-zeroes' expects 'on' or 'off'"),
        (r#"json:{"driver":"null-co","node-name":5}"#, "Invalid node-name: '5'"),
        (r#"json:{"driver":"null-co","foo":{}}"#, "Block protocol 'null-co' doesn't support the option 'foo'"),
        (r#"json:{"driver":"raw","file":null}"#, "A block device must be specified for \"file\""),
        (r#"json:{"driver":"raw","file":5}"#, "A block device must be specified for \"file\""),
        (r#"json:{"driver":"raw","file":[]}"#, "A block device must be specified for \"file\""),
        // QEMU drops null, [] and {} in silence.
        (r#"json:{"driver":"null-co","size":null}"#, "Invalid parameter type for 'size', expected: integer"),
        (r#"json:{"driver":"null-co","size":{}}"#, "Invalid parameter type for 'size', expected: integer"),
    ];
    for (text, message) in refused {
        check_file_name(text, message);
    }
}

#[test]
fn help_stands_among_the_keys_as_in_object() {
    let check = |text: &str, expected: &str| {
        let told = match Options::parse_keyval_or_help(text, Some("qom-type")) {
            Ok((options, asks)) => format!("{asks} {options}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(told, expected, "{text}");
    };
    check("help", "true {}");
    check("?,", "true {}");
    check("help,id=s", r#"true {"id": "s"}"#);
    check("secret,id=s,help", r#"true {"qom-type": "secret", "id": "s"}"#);
    check("secret,data=a,,help", r#"false {"qom-type": "secret", "data": "a,help"}"#);
    check("secret,help=on", r#"false {"qom-type": "secret", "help": "on"}"#);
    check("help,secret", "Expected '=' after parameter 'secret'");
    check("secret,help,foo", "Expected '=' after parameter 'foo'");
    check(",help", "Invalid parameter ''");
}

#[test]
fn options_print_as_qemu_img_info_prints_them() {
    let name = r#"json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"ä\"q\\ .raw"}}"#;
    let Ok(FileName::Json(options)) = FileName::parse(name) else { panic!("not options") };
    assert_eq!(
        options.to_json_file_name(),
        r#"json:{"driver": "raw", "offset": 512, "file": {"driver": "file", "filename": "\u00E4\"q\\ .raw"}}"#
    );
    assert_eq!(options.dialect(), Dialect::Legacy);
}
