//! Messages as Go writes them, and bytes that are none.

use proptest::prelude::*;

use super::*;
use crate::resource::Table;

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("short");
    let tag = u16::from(number) << 3 | 2;
    let byte = |bits: u16| u8::try_from(bits & 0x7f).expect("seven bits");
    let tag = match tag {
        ..0x80 => vec![byte(tag)],
        _ => vec![byte(tag) | 0x80, byte(tag >> 7)],
    };
    [&tag, &[length][..], content].concat()
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let names = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC, &field(1, &names), &field(2, raw)].concat()
}

fn read(bytes: &[u8]) -> Result<Value, Malformed> {
    decode(Table::built_in().schema(), bytes)
}

#[test]
fn maps_bytes_and_times() {
    // metadata.name "x", an empty creationTimestamp; data.a = 01 ff
    let metadata = field(1, &[field(1, b"x"), field(8, b"")].concat());
    let data = field(2, &[field(1, b"a"), field(2, b"\x01\xff")].concat());
    let found = read(&envelope("v1", "Secret", &[metadata, data].concat())).expect("a secret");
    let expected = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "data": {"a": "Af8="},
    });
    assert_eq!(found, expected);
}

#[test]
fn zeros_count_where_go_has_a_pointer() {
    // spec: replicas 0 (a pointer), minReadySeconds 0 (none); maxSurge "1", maxUnavailable -1
    let share = |number, content: &[u8]| field(number, content);
    let surge = [&[8, 1][..], &field(3, b"1")].concat();
    let minus = [
        8, 0, 16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
    ];
    let rolling = [share(1, &minus), share(2, &surge)].concat();
    let strategy = field(4, &field(2, &rolling));
    let spec = field(2, &[&[8, 0, 40, 0][..], &strategy].concat());
    let found = read(&envelope("apps/v1", "Deployment", &spec)).expect("a deployment");
    assert_eq!(
        found["spec"],
        json!({
            "replicas": 0,
            "strategy": {"rollingUpdate": {"maxSurge": "1", "maxUnavailable": -1}},
        })
    );
}

#[test]
fn inlined_messages_are_shown_among_their_owners_fields() {
    // spec.volumes[0]: name "v", configMap {name "c"}
    let config_map = field(1, &field(1, b"c"));
    let source = field(2, &field(19, &config_map));
    let volume = field(1, &[field(1, b"v"), source].concat());
    let found = read(&envelope("v1", "Pod", &field(2, &volume))).expect("a pod");
    let expected = json!([{"name": "v", "configMap": {"name": "c"}}]);
    assert_eq!(found["spec"]["volumes"], expected);
}

#[test]
fn every_field_of_every_kind_has_a_number() {
    let table = Table::built_in();
    let set = table.schema();
    // Types that only status has, which no client sends as protobuf.
    let newer = |name: &str| set.parts(name).is_none();
    let mut missing = Vec::new();
    for described in set.types() {
        let Some(parts) = set.parts(&described.definition) else {
            continue;
        };
        let inline: Vec<&str> = parts.values().filter_map(inlined).collect();
        for (field, found) in &described.fields {
            let numbered = std::iter::once(described.definition.as_str())
                .chain(inline.iter().copied())
                .filter_map(|name| set.parts(name))
                .flat_map(|parts| parts.values())
                .any(|part| matches!(part, Part::Field(name, _) if name == field));
            let type_meta = matches!(field.as_str(), "apiVersion" | "kind");
            let unknown =
                matches!(&found.node, Node::Object(at) if newer(&set.get(*at).definition));
            if !numbered && !type_meta && !unknown {
                missing.push(format!("{}.{field}", described.go_name));
            }
        }
    }
    // New in 1.36 and of status alone.
    let newest = [
        "v1.PodStatus.nodeAllocatableResourceClaimStatuses",
        "v1.ResourceHealth.message",
    ];
    assert_eq!(missing, newest);
}

fn inlined(part: &Part) -> Option<&str> {
    match part {
        Part::Inline(name) => Some(name),
        Part::Field(..) => None,
    }
}

#[test]
fn nonsense_is_refused() {
    assert!(matches!(read(b"{}"), Err(Malformed::Prefix)));
    assert!(matches!(read(b"k8s\0\x0a\x05"), Err(Malformed::Short)));
    let unknown = envelope("v9", "Foo", b"");
    assert!(matches!(read(&unknown), Err(Malformed::Kind { .. })));
    let number_for_text = envelope("v1", "Pod", &field(1, &[8, 1]));
    assert!(matches!(read(&number_for_text), Err(Malformed::Form(1))));
}

proptest! {
    #[test]
    fn no_bytes_panic(raw in prop::collection::vec(any::<u8>(), 0..100)) {
        let table = Table::built_in();
        let set = table.schema();
        let index = set.index("io.k8s.api.core.v1.Pod").expect("a type");
        // Only that it returns is asked.
        message(set, index, &raw).ok();
    }
}
