//! Groups by name: made, looked at, changed, used and deleted.

use crate::bed::{Bed, run};
use block_common::Options;
use block_common::options::Value;
use block_gs::{GraphResult, ObjectText};
use block_throttle::LimitKind::*;
use block_throttle::{Limit, LimitKind, ThrottleGroup, ThrottleLimits};

/// The value of JSON.
fn value(json: &str) -> Value {
    let options = Options::parse_json(&format!(r#"{{"value": {json}}}"#)).expect(json);
    options.lookup("value").expect("it stands there").clone()
}

async fn add(bed: &Bed, text: &str) -> GraphResult<()> {
    match ObjectText::parse(text)? {
        ObjectText::Make(options) => bed.gs.add_object(options).await,
        ObjectText::Help(help) => panic!("{text}: {help}"),
    }
}

#[test]
fn limits_are_what_was_said() {
    run(async |bed| {
        let all = "throttle-group,id=a,limits.iops-read=1,limits.iops-read-max=2,limits.iops-read-max-length=3,limits.bps-total=4,limits.iops-size=5,\
                   x-bps-total=6,x-iops-write=7,x-iops-write-max=8";
        add(&bed, all).await.expect("it makes sense");
        let limits = bed.gs.throttle_limits("a").expect("it is there");
        let limit = |kind: LimitKind| limits.settings()[kind];
        assert_eq!(limit(IopsRead), Limit { rate: 1, max: 2, max_length: 3 });
        assert_eq!(limit(IopsWrite), Limit { rate: 7, max: 8, max_length: 1 });
        // Of two names the one among `limits` counts.
        assert_eq!(limit(BpsTotal), Limit { rate: 4, ..Limit::default() });
        assert_eq!((limit(BpsRead), limits.settings().iops_size), (Limit::default(), 5));
        assert!(add(&bed, "throttle-group,id=b").await.is_ok());
        assert!(bed.gs.throttle_limits("b").expect("it is there").is_unlimited());
        let types: Vec<_> = bed.gs.objects().into_iter().map(|object| (object.id, object.qom_type)).collect();
        assert_eq!(types, ["a", "b", "g"].map(|id| (id.to_owned(), "throttle-group")));
    });
}

/// As `qom-set` does it: what is not named stays.
#[test]
fn limits_are_changed_one_by_one_and_checked_together() {
    run(async |bed| {
        add(&bed, "throttle-group,id=a,x-iops-total=100").await.expect("it makes sense");
        let set = |json: &str| bed.gs.set_throttle_limits("a", value(json)).map_err(|error| error.to_string());
        let total = || bed.gs.throttle_limits("a").expect("it is there").settings()[IopsTotal];
        let refused = |json: &str, told: &str| {
            let before = total();
            assert_eq!(set(json), Err(told.into()), "{json}");
            assert_eq!(total(), before);
        };
        refused(r#"{"iops-total-max": 50}"#, "bps_max/iops_max cannot be lower than bps/iops");
        assert_eq!(set(r#"{"iops-total-max": 500}"#), Ok(()));
        assert_eq!(total(), Limit { rate: 100, max: 500, max_length: 1 });
        refused(r#"{"iops-total": 0}"#, "bps_max/iops_max require corresponding bps/iops values");
        refused(
            r#"{"iops-read": 3}"#,
            "bps/iops/max total values and read/write values cannot be used at the same time",
        );
        refused(r#"{"bogus": 3}"#, "Parameter 'limits.bogus' is unexpected");
        refused(r#"{"iops-total-max-length": 0}"#, "the burst length cannot be 0");
        let range = "iops-total-max-length value must be in the range [0, 4294967295]";
        refused(r#"{"iops-total-max-length": 4294967296}"#, range);
        refused(r#"{"iops-total-max-length": -1}"#, "burst length too high for this burst rate");
        let kind = "Invalid parameter type for 'limits.iops-total-max-length', expected: integer";
        refused(r#"{"iops-total-max-length": "a"}"#, kind);
        refused("3", "Invalid parameter type for 'limits', expected: object");
        refused(r#"{"iops-size": -1}"#, "Property values cannot be negative");
        assert_eq!(set(r#"{"iops-total": 0, "iops-total-max": 0}"#), Ok(()));
        assert!(bed.gs.throttle_limits("a").expect("it is there").is_unlimited());
        let none = |error: block_gs::GraphError| error.to_string();
        let told = "Throttle group 'nope' does not exist";
        assert_eq!(bed.gs.set_throttle_limits("nope", value("{}")).map_err(none), Err(told.into()));
        assert_eq!(bed.gs.throttle_limits("nope").map(drop).map_err(none), Err(told.into()));
    });
}

#[test]
fn limits_that_change_hold_for_those_who_wait() {
    run(async |bed| {
        bed.mem("mem").await;
        let node = bed.add(r#"{"driver": "throttle", "throttle-group": "g", "file": "mem"}"#).await;
        let root = bed.root("root", &node).await;
        bed.full();
        let waiting = bed.requests(&root);
        bed.until(|| bed.group.waiting() == 5).await;
        bed.gs.set_throttle_limits("g", crate::bed::none()).expect("they change");
        assert_eq!(waiting.join().await, [Ok(()); 5]);
    });
}

#[test]
fn a_group_in_use_stays() {
    run(async |bed| {
        bed.mem("mem").await;
        let refused = |id: &str| bed.gs.remove_object(id).expect_err("it stays").to_string();
        let json = r#"{"driver": "throttle", "throttle-group": "g", "file": "mem"}"#;
        let [one, two] = [bed.add(json).await, bed.add(json).await];
        assert_eq!(refused("g"), "object 'g' is in use, can not be deleted");
        bed.gs.close(one).await.expect("it closes");
        assert_eq!(refused("g"), "object 'g' is in use, can not be deleted");
        // Who only looks at the node does not use the group.
        let io = two.io().clone();
        bed.gs.close(two).await.expect("it closes");
        bed.gs.remove_object("g").expect("nobody uses it");
        drop(io);
        assert_eq!(refused("g"), "object 'g' not found");
        let error = bed.gs.open(Options::parse_json(json).expect("options")).await.expect_err("there is none");
        assert_eq!(error.to_string(), "Throttle group 'g' does not exist");
        // A node that could not be opened uses nothing.
        bed.gs.add_throttle_group("g", bed.group.clone()).expect("it is new");
        let json = r#"{"driver": "throttle", "throttle-group": "g", "file": "mem", "bogus": 1}"#;
        bed.gs.open(Options::parse_json(json).expect("options")).await.expect_err("bogus");
        assert_eq!(bed.group.members(), 0);
        bed.gs.remove_object("g").expect("nobody uses it");
    });
}

/// A group by its name alone lasts as long as its users, and its name is taken meanwhile.
#[test]
fn groups_come_to_be_by_their_name() {
    run(async |bed| {
        let gs = &bed.gs;
        assert!(gs.throttle_group_or_new("g").group().same(&bed.group));
        let first = gs.throttle_group_or_new("virtio0");
        assert!(first.group().limits().is_unlimited());
        assert!(gs.throttle_group_or_new("virtio0").group().same(first.group()));
        assert!(gs.throttle_group("virtio0").expect("it is there").group().same(first.group()));
        assert_eq!(first.name(), "virtio0");
        assert_eq!(gs.objects().len(), 1);
        let refused = add(&bed, "throttle-group,id=virtio0").await.expect_err("its name is taken");
        assert_eq!(refused.to_string(), "A group with this name already exists");
        let new = || ThrottleGroup::new(ThrottleLimits::default());
        let refused = gs.add_throttle_group("virtio0", new()).expect_err("its name is taken");
        assert_eq!(refused.to_string(), "A group with this name already exists");
        assert_eq!(gs.remove_object("virtio0").expect_err("no object").to_string(), "object 'virtio0' not found");
        drop(first);
        gs.throttle_group("virtio0").expect_err("it is gone");
        add(&bed, "throttle-group,id=virtio0").await.expect("its name is free");
        let refused = gs.add_throttle_group("virtio0", new()).expect_err("there is an object");
        assert_eq!(refused.to_string(), "attempt to add duplicate property 'virtio0' to object (type 'container')");
        gs.add_throttle_group("1", new()).expect_err("no name for an object");
        // Of another type.
        add(&bed, "secret,id=s,data=x").await.expect("a secret");
        assert_eq!(gs.throttle_group("s").expect_err("a secret").to_string(), "Throttle group 's' does not exist");
        assert_eq!(gs.secret("virtio0").expect_err("a group").to_string(), "No secret with id 'virtio0'");
    });
}
