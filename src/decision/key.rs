//! Cache keys: canonical bytes of a Query, under the footprint that it was cut down to.
//!
//! What broke in six published CVEs of other systems was the encoding of keys, not their hashes. So this one is
//! injective: every field has its length in front, every value its type; absent and empty are two things, sets and
//! records are sorted already. A test decodes what it encodes. Keys are compared in full.

use std::cell::Cell;

use crate::model::{Attributes, EntityUid, Extension, Proof, Query, Value};
use crate::proto::varint::Varint;

/// A key, while it is put together.
pub type Key = Vec<u8>;

thread_local! {
    /// Room for the key of one check, so that looking it up allocates nothing.
    static ROOM: Cell<Key> = const { Cell::new(Key::new()) };
}

/// Lends room for a key.
pub fn with_room<T>(use_it: impl FnOnce(&mut Key) -> T) -> T {
    let mut key = ROOM.take();
    key.clear();
    let result = use_it(&mut key);
    // A request with a large body in its key does not hold on to its size.
    if key.capacity() <= 64 << 10 {
        ROOM.set(key);
    }
    result
}

/// Appends the key of a query to `key`, which is empty or holds what came before.
pub fn encode(query: &Query, fingerprint: &[u8; 16], key: &mut Key) {
    key.extend_from_slice(fingerprint);
    uid(&query.principal.uid, key);
    key.push(match query.principal.proof {
        Proof::Jwt => 1,
        Proof::Peer => 2,
        Proof::TrustedHeader => 3,
        Proof::None => 4,
    });
    record(&query.principal.attributes, key);
    length(query.principal.parents.len(), key);
    query.principal.parents.iter().for_each(|parent| uid(parent, key));
    uid(&query.action, key);
    uid(&query.resource, key);
    record(&query.context, key);
}

fn length(length: usize, key: &mut Key) {
    key.extend_from_slice(&Varint::of(length as u64));
}

fn text(text: &str, key: &mut Key) {
    length(text.len(), key);
    key.extend_from_slice(text.as_bytes());
}

fn uid(uid: &EntityUid, key: &mut Key) {
    let entity_type = uid.type_name();
    length(entity_type.namespace_components().count(), key);
    entity_type.namespace_components().for_each(|component| text(component, key));
    text(entity_type.basename(), key);
    text(uid.id().unescaped(), key);
}

fn record(fields: &Attributes, key: &mut Key) {
    length(fields.len(), key);
    for (name, field) in fields {
        text(name, key);
        value(field, key);
    }
}

fn value(own: &Value, key: &mut Key) {
    match own {
        Value::Bool(value) => key.extend_from_slice(&[1, u8::from(*value)]),
        Value::Long(value) => {
            key.push(2);
            key.extend_from_slice(&value.to_le_bytes());
        }
        Value::String(value) => {
            key.push(3);
            text(value, key);
        }
        Value::Entity(value) => {
            key.push(4);
            uid(value, key);
        }
        Value::Extension(extension, value) => {
            key.push(match extension {
                Extension::Ipaddr => 5,
                Extension::Decimal => 6,
                Extension::Datetime => 7,
                Extension::Duration => 8,
            });
            text(value, key);
        }
        Value::Set(members) => {
            key.push(9);
            length(members.len(), key);
            members.iter().for_each(|member| value(member, key));
        }
        Value::Record(fields) => {
            key.push(10);
            record(fields, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smol_str::SmolStr;

    use super::*;
    use crate::model::{EntityId, EntityTypeName, Principal};

    /// Reads a key back; `None` if it is not one.
    struct Reader<'a>(&'a [u8]);

    impl Reader<'_> {
        fn take(&mut self, count: usize) -> Option<&[u8]> {
            let (head, tail) = self.0.split_at_checked(count)?;
            self.0 = tail;
            Some(head)
        }

        fn byte(&mut self) -> Option<u8> {
            self.take(1).map(|bytes| bytes[0])
        }

        fn length(&mut self) -> Option<usize> {
            let byte = usize::from(self.byte()?);
            if byte < 0x80 { Some(byte) } else { Some(byte - 0x80 + (self.length()? << 7)) }
        }

        fn text(&mut self) -> Option<String> {
            let length = self.length()?;
            String::from_utf8(self.take(length)?.to_vec()).ok()
        }

        fn uid(&mut self) -> Option<EntityUid> {
            let components = self.length()? + 1;
            let entity_type = (0..components).map(|_| self.text()).collect::<Option<Vec<_>>>()?.join("::");
            Some(EntityUid::from_type_name_and_id(entity_type.parse().ok()?, EntityId::new(self.text()?)))
        }

        fn record(&mut self) -> Option<Attributes> {
            (0..self.length()?).map(|_| Some((SmolStr::from(self.text()?), self.value()?))).collect()
        }

        fn value(&mut self) -> Option<Value> {
            Some(match self.byte()? {
                1 => Value::Bool(self.byte()? == 1),
                2 => Value::Long(i64::from_le_bytes(self.take(8)?.try_into().unwrap())),
                3 => Value::String(self.text()?.into()),
                4 => Value::Entity(self.uid()?),
                5 => Value::Extension(Extension::Ipaddr, self.text()?.into()),
                6 => Value::Extension(Extension::Decimal, self.text()?.into()),
                7 => Value::Extension(Extension::Datetime, self.text()?.into()),
                8 => Value::Extension(Extension::Duration, self.text()?.into()),
                9 => Value::Set((0..self.length()?).map(|_| self.value()).collect::<Option<_>>()?),
                10 => Value::Record(self.record()?),
                _ => return None,
            })
        }

        fn query(&mut self) -> Option<([u8; 16], Query)> {
            let fingerprint = self.take(16)?.try_into().unwrap();
            let uid = self.uid()?;
            let proof = [Proof::Jwt, Proof::Peer, Proof::TrustedHeader, Proof::None][usize::from(self.byte()?) - 1];
            let attributes = self.record()?;
            let parents = (0..self.length()?).map(|_| self.uid()).collect::<Option<_>>()?;
            let principal = Principal { uid, attributes, parents, proof };
            let query = Query { principal, action: self.uid()?, resource: self.uid()?, context: self.record()? };
            self.0.is_empty().then_some((fingerprint, query))
        }
    }

    fn any_uid() -> impl Strategy<Value = EntityUid> {
        ("[A-Z][a-z]{0,3}(::[A-Z][a-z]{0,3}){0,2}", ".{0,8}").prop_map(|(entity_type, id)| {
            let entity_type: EntityTypeName = entity_type.parse().expect("a type");
            EntityUid::from_type_name_and_id(entity_type, EntityId::new(id))
        })
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Long),
            "(.{0,8}|.{120,300})".prop_map(|text| Value::String(text.into())),
            any_uid().prop_map(Value::Entity),
            "[0-9.]{0,8}".prop_map(|text| Value::Extension(Extension::Ipaddr, text.into())),
            "[0-9.]{0,8}".prop_map(|text| Value::Extension(Extension::Decimal, text.into())),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::set),
                prop::collection::btree_map(".{0,4}".prop_map(SmolStr::from), inner, 0..4).prop_map(Value::Record),
            ]
        })
    }

    fn any_record() -> impl Strategy<Value = Attributes> {
        prop::collection::btree_map(".{0,4}".prop_map(SmolStr::from), any_value(), 0..4)
    }

    fn any_query() -> impl Strategy<Value = Query> {
        let proof = prop::sample::select(vec![Proof::Jwt, Proof::Peer, Proof::TrustedHeader, Proof::None]);
        let parents = prop::collection::vec(any_uid(), 0..3);
        let principal = (any_uid(), any_record(), parents, proof);
        (principal, any_uid(), any_uid(), any_record()).prop_map(
            |((uid, attributes, parents, proof), action, resource, context)| Query {
                principal: Principal { uid, attributes, parents, proof },
                action,
                resource,
                context,
            },
        )
    }

    fn key(query: &Query) -> Key {
        let mut key = Key::new();
        encode(query, &[7; 16], &mut key);
        key
    }

    proptest! {
        #[test]
        fn what_is_encoded_can_be_read_back(query in any_query()) {
            prop_assert_eq!(Reader(&key(&query)).query(), Some(([7; 16], query)));
        }
    }

    /// The shapes that broke other systems' keys: joined lists, nesting, absent against empty, types.
    #[test]
    fn look_alikes_have_keys_of_their_own() {
        let text = |value: &str| Value::String(value.into());
        let nested = |values: &[&str]| Value::set(values.iter().map(|value| text(value)).collect());
        let record = |name: &str, value: Value| Attributes::from([(name.into(), value)]);
        let contexts = [
            Attributes::new(),
            record("a", text("")),
            record("a", Value::Set(Vec::new())),
            record("a", Value::Record(Attributes::new())),
            record("a", text("a,b")),
            record("a", nested(&["a", "b"])),
            record("a", nested(&["a,b"])),
            record("a", Value::set(vec![nested(&["a"]), nested(&["b"])])),
            record("a", Value::set(vec![nested(&["a", "b"])])),
            record("a", Value::Record(record("b", text("c")))),
            record("a.b", text("c")),
            record("a", text("1")),
            record("a", Value::Long(1)),
            record("a", Value::Bool(true)),
            record("a", Value::Extension(Extension::Decimal, "1".into())),
            record("a", Value::Extension(Extension::Duration, "1".into())),
            record("a", text("User::\"x\"")),
            record("a", Value::Entity("User::\"x\"".parse().expect("an entity"))),
        ];
        let uid: EntityUid = "User::\"x\"".parse().expect("an entity");
        let keys: std::collections::BTreeSet<Key> = contexts
            .iter()
            .map(|context| {
                let principal = Principal {
                    uid: uid.clone(),
                    attributes: Attributes::new(),
                    parents: Vec::new(),
                    proof: Proof::None,
                };
                key(&Query { principal, action: uid.clone(), resource: uid.clone(), context: context.clone() })
            })
            .collect();
        assert_eq!(keys.len(), contexts.len());
    }
}
