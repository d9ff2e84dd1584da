//! What cairn-img does where it does not do the same as qemu-img. A line that no longer differs belongs to its command.

use crate::support::{ours, theirs, words};

/// Only the end of what is printed has to be `stderr`.
fn check(line: &str, status: i32, stderr: &str) {
    let args = words(line);
    let ours = ours(&args);
    assert_eq!((ours.status, ours.stderr.as_str()), (Some(status), stderr), "{line}");
    if let Some(theirs) = theirs(&args) {
        assert!(ours != theirs, "{line}: the same as qemu-img by now");
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    check("create -f vmdk n.vmdk 1M", 1, "PROGRAM: n.vmdk: Image format 'vmdk' is not supported\n");
    check("dd -O vmdk if=a.raw of=n", 1, "PROGRAM: Image format 'vmdk' is not supported\n");
    let format = "PROGRAM: Parameter 'format' does not accept value 'foo'\n";
    check("measure -O qcow2 -o encrypt.format=foo --size 1M", 1, format);
    check("create -o nocow=on n.raw 1M", 1, "PROGRAM: n.raw: Option 'nocow' of driver 'file' is not supported\n");
    check(
        "create -o extent_size_hint=4k n.raw 1M",
        1,
        "PROGRAM: n.raw: Option 'extent_size_hint' of driver 'file' is not supported\n",
    );
    for kind in ["tls-creds-x509", "authz-simple", "secret_keyring"] {
        let told = format!("PROGRAM: Object type '{kind}' is not supported\n");
        check(&format!("create --object {kind},id=a n.raw 1M"), 1, &told);
        check(&format!("create --object {kind},help"), 1, &told);
    }
    check("create --object help", 0, "");
}

/// A secret that is not the one that was meant is no secret, and what may be a part of one is not printed.
#[test]
fn bad_secrets_are_refused() {
    let base64 = "PROGRAM: Base64 data is incomplete, or goes on behind its end\n";
    check("create --object secret,id=s,format=base64,data=YWJ n.raw 1M", 1, base64);
    check("create --object secret,id=s,format=base64,data=YR== n.raw 1M", 1, base64);
    check("create --object secret,id=s,format=base64,data=YQ==YQ== n.raw 1M", 1, base64);
    let iv = "PROGRAM: 'iv' is given without 'keyid'\n";
    check("create --object secret,id=s,data=x,iv=CQkJCQkJCQkJCQkJCQkJCQ== n.raw 1M", 1, iv);
    let master = "--object secret,id=m,format=base64,data=BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    let secret = "--object secret,id=s,keyid=m,iv=CQkJCQkJCQkJCQkJCQkJCQ==,format=base64,data=";
    let padding = "PROGRAM: Incorrect number of padding bytes found on decrypted data\n";
    for data in ["CQkJCQkJCQkJCQkJCQkJCQ==", ""] {
        check(&format!("create {master} {secret}{data} n.raw 1M"), 1, padding);
    }
    let comma = "PROGRAM: What follows the comma in the value of 'data' is no parameter\nA comma in a value is written twice.\n";
    check("create --object secret,id=s,data=x,y n.raw 1M", 1, comma);
    let json = "PROGRAM: JSON parse error at byte 41\n";
    check(r#"create --object {"qom-type":"secret","id":"s","data":pass} n.raw 1M"#, 1, json);
    let long = "PROGRAM: Unable to read target.raw: Error reading file “target.raw”: It has more than 8388608 bytes\n";
    check("create --object secret,id=s,file=target.raw n.raw 1M", 1, long);
}

#[test]
fn help_and_parser_agree() {
    check("measure -s 1k", 0, "");
    check("convert --progress a.raw n.raw", 0, "");
}

/// Mistakes are found before a target is touched.
#[test]
fn a_mistake_leaves_the_target_alone() {
    check("create n.raw 9223372036854775807", 1, "PROGRAM: n.raw: Could not resize file: Invalid argument\n");
    check("create -o preallocation=metadata a.raw 1M", 1, "PROGRAM: a.raw: Unsupported preallocation mode: metadata\n");
    check("convert -t bogus hole.raw a.raw", 1, "PROGRAM: Invalid cache option: bogus\n");
    let lock = "PROGRAM: error while creating output image: a.raw: Failed to get \"write\" lock\n";
    let lock = lock.replace("error while creating output image: a.raw:", "a.raw: error while creating output image:");
    check("dd if=a.raw of=a.raw", 1, &format!("{lock}Is another process using the image [a.raw]?\n"));
}
