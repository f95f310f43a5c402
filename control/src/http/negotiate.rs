//! What form of an answer a client accepts.

use http::{HeaderMap, header};

use crate::api::Status;

/// What is served, as a 406 says it.
const SERVED: &str = "application/json, application/yaml";

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What an answer shows of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All of them.
    Object,
    /// Rows and columns.
    Table,
    /// Their metadata alone.
    Metadata,
    /// Discovery of all groups at once, in this version ("v2").
    Discovery(&'static str),
}

impl Default for Form {
    /// An object in JSON.
    fn default() -> Self {
        Self {
            encoding: Encoding::Json,
            shape: Shape::Object,
        }
    }
}

/// The chosen form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// How it is written.
    pub encoding: Encoding,
    /// What it shows.
    pub shape: Shape,
}

/// The first form in the client's list that is served.
pub fn form(headers: &HeaderMap) -> Result<Form, Status> {
    let mut listed = Vec::new();
    for value in headers.get_all(header::ACCEPT) {
        let text = value.to_str().unwrap_or("");
        listed.extend(
            text.split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty()),
        );
    }
    if listed.is_empty() {
        return Ok(Form::default());
    }
    listed
        .into_iter()
        .find_map(served)
        .ok_or_else(|| Status::not_acceptable(SERVED))
}

fn served(range: &str) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    let encoding = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        _ => return None,
    };
    let (mut target, mut group, mut version) = ("", "", "");
    for parameter in parts {
        match parameter.split_once('=') {
            Some(("as", value)) => target = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            _ => {}
        }
    }
    let known = matches!(version, "v1" | "v1beta1") && group == "meta.k8s.io";
    let shape = match target {
        "" => Shape::Object,
        "Table" if known => Shape::Table,
        "PartialObjectMetadata" | "PartialObjectMetadataList" if known => Shape::Metadata,
        "APIGroupDiscoveryList" if group == "apidiscovery.k8s.io" => match version {
            "v2" => Shape::Discovery("v2"),
            "v2beta1" => Shape::Discovery("v2beta1"),
            _ => return None,
        },
        _ => return None,
    };
    Some(Form { encoding, shape })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn shape_of(accept: &'static str) -> Option<Shape> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        form(&headers).ok().map(|form| form.shape)
    }

    #[test]
    fn the_first_form_that_is_served_wins() {
        for (accept, shape) in [
            ("application/json", Some(Shape::Object)),
            ("*/*", Some(Shape::Object)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                Some(Shape::Table),
            ),
            (
                "application/json;as=Table;v=v9;g=meta.k8s.io,application/json",
                Some(Shape::Object),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                 application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                Some(Shape::Metadata),
            ),
            ("application/vnd.kubernetes.protobuf", None),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                Some(Shape::Discovery("v2")),
            ),
        ] {
            assert_eq!(shape_of(accept), shape, "{accept}");
        }
    }
}
