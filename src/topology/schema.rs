//! The file format as JSON Schema, made from the types that read the files.
//!
//! Draft-07, which YAML extensions of editors understand. What the types can't tell by themselves (that an address is
//! one, that an empty section is an error) is added here.

use super::document::Document;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// The schema of one document of a topology file.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft07().into_generator();
    let mut schema = generator.into_root_schema_for::<Document>();
    schema.insert("title".to_owned(), json!("tunnel-mesh topology"));
    let mut value = schema.to_value();
    plain_defaults(&mut value);
    value
}

/// Defaults as a file would say them: those that a file can't say are left out.
fn plain_defaults(value: &mut Value) {
    match value {
        Value::Object(object) => {
            match object.get("default") {
                Some(default) if default.get("fixed").is_some() => {
                    let fixed = default["fixed"].clone();
                    object.insert("default".to_owned(), fixed);
                }
                Some(Value::Null) => drop(object.remove("default")),
                Some(Value::String(text)) if text.is_empty() => drop(object.remove("default")),
                _ => {}
            }
            object.values_mut().for_each(plain_defaults);
        }
        Value::Array(list) => list.iter_mut().for_each(plain_defaults),
        _ => {}
    }
}

/// An IP address of either family.
pub(super) fn address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "title": "IP address",
        "type": "string",
        "pattern": "^[0-9A-Fa-f:.]+$",
        "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}],
    })
}

/// A name. One that looks like a number needs no quotes.
pub(super) fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "number", "boolean"]})
}

/// The same where it may be left out by `null`.
pub(super) fn optional_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["string", "number", "boolean", "null"]})
}

/// A list of names.
pub(super) fn names(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": name(generator)})
}

/// `inherit`, or a number from 0 to 255.
pub(super) fn outer(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{"const": "inherit"}, {"type": "integer", "format": "uint8", "minimum": 0, "maximum": 255}],
    })
}

/// A section with nothing in it is an error, and so there is no default to show.
pub(super) fn empty_is_nothing(schema: &mut Schema) {
    schema.remove("default");
    let least = if schema.get("type") == Some(&json!("array")) { "minItems" } else { "minProperties" };
    schema.insert(least.to_owned(), json!(1));
}
