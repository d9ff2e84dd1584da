//! Objects: secrets that are made, found, decrypted and removed; what is refused, in which words; and that nothing of them is told.

#![allow(clippy::disallowed_methods, reason = "tests make files and run programs")]

mod common;

use block_common::Options;
use block_gs::{GlobalState, GraphResult, ObjectInfo, ObjectText};
use common::World;
use std::io::Write;
use std::process::{Command, Stdio};

/// AES-256-CBC of "letmein" with 32 times 7 as the key and 16 times 9 as the initialisation vector, as openssl makes it.
const LETMEIN: &str = "8M6ybS9236/Kv2RAf/0mMw==";
const MASTER: &str = "secret,id=m,format=base64,data=BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
const IV: &str = "CQkJCQkJCQkJCQkJCQkJCQ==";

/// Make what `text` says, as `--object` would.
async fn add(gs: &GlobalState, text: &str) -> GraphResult<()> {
    match ObjectText::parse(text)? {
        ObjectText::Make(options) => gs.add_object(options).await,
        ObjectText::Help(help) => panic!("{text}: {help}"),
    }
}

/// What the secret `s` is after all `texts`, or what the last one is refused with.
fn made(texts: &[&str]) -> Result<Vec<u8>, String> {
    let world = World::new();
    world.run_and_close(async {
        let (last, before) = texts.split_last().expect("a text");
        for text in before {
            add(&world.gs, text).await.expect(text);
        }
        let count = world.gs.objects().len();
        if let Err(error) = add(&world.gs, last).await {
            assert_eq!(world.gs.objects().len(), count, "{texts:?}");
            return Err(error.report());
        }
        Ok(world.gs.secret("s").expect("it was made").expose().to_vec())
    })
}

fn check(text: &str, expected: &[u8]) {
    assert_eq!(made(&[text]).as_deref(), Ok(expected), "{text}");
}

fn check_refused(texts: &[&str], expected: &str) {
    assert_eq!(made(texts).expect_err(expected), expected, "{texts:?}");
}

/// As in `made`, for the encrypted `data` with more properties.
fn encrypted(data: &str, more: &str) -> String {
    format!("secret,id=s,keyid=m,data={data},{more}")
}

#[test]
fn a_secret_is_what_its_text_says() {
    check("secret,id=s,data=letmein", b"letmein");
    check("secret,id=s,data=", b"");
    check("secret,id=s,data=a,,b", b"a,b");
    check("secret,id=s,data=one,data=two", b"two");
    check("id=s,qom-type=secret,data=YWI=,format=base64", b"ab");
    check("secret,id=s,data=YWJjZGVm,format=base64", b"abcdef");
    check("secret,id=s,data=,format=base64", b"");
    check("secret,id=s,data=YWI=,format=raw", b"YWI=");
    check(r#"{"qom-type": "secret", "id": "s", "data": "a\u0000\u00e4,b"}"#, b"a\0\xc3\xa4,b");
    check("{'qom-type': 'secret', 'id': 's', 'data': '/wA=', 'format': 'base64'}", b"\xff\0");
}

#[test]
fn a_secret_is_what_its_file_holds() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("a name").to_owned();
    let check_file = |bytes: &[u8], format: &str, expected: Result<&[u8], &str>| {
        std::fs::write(path("f"), bytes).expect("a file");
        let made = made(&[&format!("secret,id=s,file={},format={format}", path("f"))]);
        assert_eq!(made.as_deref().map_err(String::as_str), expected);
    };
    check_file(b"line\n", "raw", Ok(b"line\n"));
    check_file(b"\xff\0\xfe", "raw", Ok(b"\xff\0\xfe"));
    check_file(b"", "raw", Ok(b""));
    check_file(&[b'x'; 10_000], "raw", Ok(&[b'x'; 10_000]));
    check_file(b"YW\nJj\n\n", "base64", Ok(b"abc"));
    check_file(b"YWJj\r\n", "base64", Err("Base64 data contains invalid characters"));
    check_file(b"YW\0Jj", "base64", Err("Base64 data contains embedded NUL characters"));

    let sparse = std::fs::File::create(path("big")).expect("a file");
    sparse.set_len(8 << 20).expect("a length");
    assert_eq!(made(&[&format!("secret,id=s,file={}", path("big"))]).map(|bytes| bytes.len()), Ok(8 << 20));
    let check_unreadable = |name: &str, why: &str| {
        check_refused(&[&format!("secret,id=s,file={name}")], &format!("Unable to read {name}: {why}"));
    };
    let (big, nope) = (path("big"), path("nope"));
    sparse.set_len((8 << 20) + 1).expect("a length");
    check_unreadable(&big, &format!("Error reading file “{big}”: It has more than 8388608 bytes"));
    check_unreadable("/dev/zero", "Error reading file “/dev/zero”: It has more than 8388608 bytes");
    check_unreadable(&nope, &format!("Failed to open file “{nope}”: No such file or directory"));
    check_unreadable("/", "Error reading file “/”: Is a directory");
}

/// The words are those of qemu-img 10.0.2, but for the last block's.
#[test]
fn what_makes_no_sense_is_refused() {
    let id = "Parameter 'id' expects an identifier\n\
              Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";
    check_refused(&["secret,id=s"], "Either 'file' or 'data' must be provided");
    check_refused(&["secret,id=s,data=x,file=y"], "'file' and 'data' are mutually exclusive");
    check_refused(&["secret,data=x"], "Parameter 'id' is missing");
    check_refused(&["id=s,data=x"], "Parameter 'qom-type' is missing");
    check_refused(&["secrt,id=s"], "Parameter 'qom-type' does not accept value 'secrt'");
    check_refused(&["iothread,id=s"], "invalid object type: iothread");
    check_refused(&["secret,id=1,data=x"], id);
    check_refused(&["secret,id=,data=x"], id);
    check_refused(&["secret,id=s,data=x,loaded=on"], "Parameter 'loaded' is unexpected");
    check_refused(&["secret,id=1,data=x,foo=1"], "Parameter 'foo' is unexpected");
    check_refused(&["secret,id=s,data=x,format=hex"], "Parameter 'format' does not accept value 'hex'");
    check_refused(&["secret,id=s,data.a=x"], "Parameters 'data.*' are unexpected");
    check_refused(&["secret,id=s,format"], "Expected '=' after parameter 'format'");
    check_refused(&["secret,id=s,data=a-b_,format=base64"], "Base64 data contains invalid characters");
    check_refused(
        &[r#"{"qom-type":"secret","id":"s","data":1}"#],
        "Invalid parameter type for 'data', expected: string",
    );
    let duplicate = "attempt to add duplicate property 's' to object (type 'container')";
    check_refused(&["secret,id=s,data=x", "secret,id=s,file=/nonexistent"], duplicate);

    check_refused(&["authz-simple,id=s"], "Object type 'authz-simple' is not supported");
    check_refused(&["secret,id=s,data=x,iv=AAAA"], "'iv' is given without 'keyid'");
    for text in ["Y", "YQ", "YQ=", "YR==", "YWJj=", "YQ==YQ==", "=", "YW=J"] {
        let secret = format!("secret,id=s,data={text},format=base64");
        check_refused(&[&secret], "Base64 data is incomplete, or goes on behind its end");
    }
}

#[test]
fn an_encrypted_secret_is_decrypted() {
    let check = |data: &str, more: &str, expected: Result<&[u8], &str>| {
        let made = made(&[MASTER, "secret,id=short,data=x", &encrypted(data, more)]);
        assert_eq!(made.as_deref().map_err(String::as_str), expected, "{data} {more}");
    };
    let with_iv = format!("iv={IV},format=base64");
    check(LETMEIN, &with_iv, Ok(b"letmein"));
    check("AAAA", &with_iv, Err("Length 3 must be a multiple of block size 16"));
    check(LETMEIN, &format!("iv={IV}"), Err("Length 24 must be a multiple of block size 16"));
    check("!!", &with_iv, Err("Base64 data contains invalid characters"));
    let padding = "Incorrect number of padding bytes found on decrypted data";
    check(IV, &with_iv, Err(padding));
    check("", &with_iv, Err(padding));
    check(LETMEIN, "format=base64", Err("IV is required to decrypt secret"));
    check(LETMEIN, "format=base64,iv=", Err("IV should be 16 bytes in length not 0"));
    check("!!", "format=base64,iv=AAAA", Err("IV should be 16 bytes in length not 3"));
    check(LETMEIN, "format=base64,iv=!!", Err("Base64 data contains invalid characters"));
    check("!!", "format=base64,keyid=short", Err("Key should be 32 bytes in length"));
    check("!!", "format=base64,keyid=nope", Err("No secret with id 'nope'"));
    check("!!", "format=base64,keyid=s", Err("Secret with id 's' has no data"));
}

/// Texts of every length up to three blocks, encrypted by openssl.
#[test]
fn what_openssl_encrypts_is_read_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let world = World::new();
    world.run_and_close(async {
        add(&world.gs, MASTER).await.expect("a master key");
        for len in 0..50u8 {
            let plain: Vec<u8> = (0..len).map(|i| i.wrapping_mul(91).wrapping_add(len)).collect();
            let Some(text) = openssl(&plain) else {
                return block_testkit::bed::skipped("what_openssl_encrypts_is_read_back", "openssl is not installed");
            };
            let path = dir.path().join("text");
            std::fs::write(&path, text).expect("a file");
            let secret = format!("secret,id=s{len},keyid=m,iv={IV},format=base64,file={}", path.display());
            add(&world.gs, &secret).await.expect("it is a secret");
            assert_eq!(world.gs.secret(&format!("s{len}")).expect("it is there").expose(), plain);
        }
    });
}

/// What openssl makes of `plain`, in base64, with line ends; `None` if there is none.
fn openssl(plain: &[u8]) -> Option<Vec<u8>> {
    let (key, iv) = ("07".repeat(32), "09".repeat(16));
    let mut command = Command::new("openssl");
    command.args(["enc", "-aes-256-cbc", "-a", "-K", &key, "-iv", &iv]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take().expect("a pipe").write_all(plain).expect("it is read");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    Some(output.stdout)
}

#[test]
fn objects_are_found_and_removed_by_id() {
    let world = World::new();
    world.run_and_close(async {
        let gs = &world.gs;
        add(gs, "secret,id=b,data=two").await.expect("made");
        add(gs, "secret,id=a,format=base64,data=/w==").await.expect("made");
        add(gs, r#"{"qom-type": "secret", "id": "c", "data": "a\u0000b"}"#).await.expect("made");
        let ids: Vec<_> = gs.objects().into_iter().map(|ObjectInfo { id, qom_type, .. }| (id, qom_type)).collect();
        assert_eq!(ids, ["a", "b", "c"].map(|id| (id.to_owned(), "secret")));
        assert_eq!(gs.secret_text("b").expect("text").expose(), b"two");
        for id in ["a", "c"] {
            let message = format!("Data from secret {id} is not valid UTF-8");
            assert_eq!(gs.secret_text(id).expect_err("bytes").to_string(), message);
        }
        assert_eq!(gs.secret("s").expect_err("none").to_string(), "No secret with id 's'");
        assert_eq!(gs.secret_text("s").expect_err("none").to_string(), "No secret with id 's'");

        let kept = gs.secret("b").expect("it is there");
        gs.remove_object("b").expect("it is there");
        assert_eq!(gs.remove_object("b").expect_err("it is gone").to_string(), "object 'b' not found");
        assert_eq!(gs.secret("b").expect_err("it is gone").to_string(), "No secret with id 'b'");
        assert_eq!(kept.expose(), b"two");
        add(gs, "secret,id=b,data=three").await.expect("made again");
        assert_eq!(gs.secret("b").expect("it is there").expose(), b"three");
    });
}

/// Of two with one id that are made beside each other one is.
#[test]
fn an_id_is_taken_once() {
    let world = World::new();
    world.run_and_close(async {
        let file = || Options::parse_keyval("qom-type=secret,id=s,file=/dev/null", None).expect("options");
        let first = world.gs.main().spawn({
            let gs = world.gs.clone();
            async move { gs.add_object(file()).await.is_ok() }
        });
        let second = world.gs.add_object(file()).await.is_ok();
        assert!(first.join().await != second);
        assert_eq!(world.gs.objects().len(), 1);
    });
}

#[test]
fn help_lists_what_can_be_made() {
    let check = |text: &str, expected: &str| match ObjectText::parse(text) {
        Ok(ObjectText::Help(help)) => assert_eq!(help, expected, "{text}"),
        other => panic!("{text}: {other:?}"),
    };
    let types = "List of user creatable objects:\n  secret\n  throttle-group\n";
    let secret = "secret options:\n  data=<string>\n  file=<string>\n  format=<QCryptoSecretFormat>\n  iv=<string>\n  keyid=<string>\n";
    for text in ["help", "?", "help,", "help,id=s", "help,help", "id=s,help", "nope,help", "iothread,help"] {
        check(text, types);
    }
    for text in ["secret,help", "secret,?", "secret,format=hex,help", "secret,nope=1,help,help", "qom-type=secret,help"]
    {
        check(text, secret);
    }
    let refused = |text: &str, expected: &str| {
        assert_eq!(ObjectText::parse(text).expect_err(text).to_string(), expected);
    };
    refused("help,secret", "Expected '=' after parameter 'secret'");
    refused(",help", "Invalid parameter ''");
    refused("authz-simple,help", "Object type 'authz-simple' is not supported");
    for text in ["help=1", "qom-type=help", "secret,data=x,,help", "secret,data=help", r#"{"qom-type":"help"}"#] {
        assert!(matches!(ObjectText::parse(text), Ok(ObjectText::Make(_))), "{text}");
    }
}

/// Wherever something goes wrong, and whatever is shown, no byte of the secret is told.
#[test]
fn nothing_secret_is_told() {
    const SECRET: &str = "hunter2";
    let world = World::new();
    let told = world.run_and_close(async {
        let mut told = Vec::new();
        for text in [
            "secret,id=s,data=hunter2",
            "secret,id=s,data=hunter2",
            "secret,id=1,data=hunter2",
            "secret,id=t,data=hunter2,file=x",
            "secret,id=t,data=hunter2,format=base64",
            "secret,id=t,data=hunter2!,format=base64",
            "secret,id=t,data=hunter2,format=hex",
            "secret,id=t,data=hunter2,keyid=s,iv=AAAA",
            "secret,id=t,data=hunter2,keyid=nope",
            "secret,id=t,data=hunter2,nope=1",
            "secret,id=t,data=x,hunter2",
            "secret,id=t,data=x,y,hunter2 z",
            "secret,id=t,data=x,.hunter2=y",
            "secret,data=hunter2",
            "nope,id=t,data=hunter2",
            "throttle-group,id=t,data=hunter2",
            r#"{"qom-type":"secret","id":"t","data":"hunter2"#,
            r#"{"qom-type":"secret","id":"t","data":hunter2}"#,
            r#"{"qom-type":"secret","id":"t","data":"\hunter2"}"#,
            r#"{"qom-type":"secret","id":"t","data":"\uD800hunter2"}"#,
            r#"{"qom-type":"secret","id":"t","data":"x""hunter2"}"#,
            r#"{"qom-type":"secret","id":"t","data":"x"ähunter2"}"#,
            r#"{"qom-type":"secret","id":"t","data":["hunter2"]}"#,
            r#"{"qom-type":"secret","id":1,"data":"hunter2"}"#,
        ] {
            told.push(format!("{:?}", ObjectText::parse(text)));
            if let Err(error) = add(&world.gs, text).await {
                told.push(format!("{error} {error:?} {}", error.report()));
            }
        }
        told.push(format!("{:?} {:?} {:?}", world.gs, world.gs.objects(), world.gs.secret("s")));
        told
    });
    assert!(told.len() > 40, "{told:?}");
    for text in told {
        assert!(!text.contains(SECRET) && !text.contains("104, 117, 110"), "{text}");
    }
}
