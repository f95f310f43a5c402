//! What volumes hold that are made of API objects.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection,
    Volume,
};

use super::{VolumeError, publish::Files, relative};
use crate::pod::{
    EnvironmentError, ReferenceError, References, TokenRequest,
    environment::{Facts, environment_field},
    pod_ref,
    tokens::Tokens,
};

/// The default of expirationSeconds.
const TOKEN_LIFE: i64 = 3600;

/// The files of a volume.
pub async fn content(
    volume: &Volume,
    facts: Facts<'_>,
    references: &dyn References,
    tokens: &mut Tokens,
) -> Result<Files, VolumeError> {
    let mut files = Files::new();
    let name = &volume.name;
    if let Some(own) = &volume.config_map {
        let data = read_config_map(name, &own.name, own.optional, facts.pod, references).await?;
        let items = own.items.as_deref();
        select(
            name,
            data,
            items,
            own.default_mode,
            own.optional,
            &mut files,
        )?;
    } else if let Some(own) = &volume.secret {
        let secret = own.secret_name.as_deref().unwrap_or_default();
        let data = read_secret(name, secret, own.optional, facts.pod, references).await?;
        let items = own.items.as_deref();
        select(
            name,
            data,
            items,
            own.default_mode,
            own.optional,
            &mut files,
        )?;
    } else if let Some(own) = &volume.downward_api {
        downward(
            name,
            own.items.as_deref(),
            own.default_mode,
            facts,
            &mut files,
        )?;
    } else if let Some(projected) = &volume.projected {
        project(name, projected, facts, (references, tokens), &mut files).await?;
    } else {
        return Err(VolumeError::Unsupported(name.clone()));
    }
    Ok(files)
}

/// Several sources in one folder.
async fn project(
    name: &str,
    projected: &ProjectedVolumeSource,
    facts: Facts<'_>,
    (references, tokens): (&dyn References, &mut Tokens),
    files: &mut Files,
) -> Result<(), VolumeError> {
    let mode = projected.default_mode;
    for source in projected.sources.iter().flatten() {
        if let Some(own) = &source.config_map {
            let data =
                read_config_map(name, &own.name, own.optional, facts.pod, references).await?;
            select(name, data, own.items.as_deref(), mode, own.optional, files)?;
        } else if let Some(own) = &source.secret {
            let data = read_secret(name, &own.name, own.optional, facts.pod, references).await?;
            select(name, data, own.items.as_deref(), mode, own.optional, files)?;
        } else if let Some(own) = &source.downward_api {
            downward(name, own.items.as_deref(), mode, facts, files)?;
        } else if let Some(own) = &source.service_account_token {
            let text = token(name, own, facts.pod, (references, &mut *tokens)).await?;
            let path = file_path(name, &own.path)?;
            files.insert(path, (text.into_bytes(), self::mode(None, mode)));
        } else {
            return Err(VolumeError::Unsupported(name.to_owned()));
        }
    }
    Ok(())
}

/// A token of the pod's own account.
async fn token(
    volume: &str,
    wanted: &ServiceAccountTokenProjection,
    pod: &Pod,
    (references, tokens): (&dyn References, &mut Tokens),
) -> Result<String, VolumeError> {
    let spec = pod.spec.as_ref();
    let request = TokenRequest {
        account: spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_else(|| "default".to_owned()),
        audience: wanted.audience.clone().unwrap_or_default(),
        seconds: wanted.expiration_seconds.unwrap_or(TOKEN_LIFE),
    };
    tokens
        .get(references, &pod_ref(pod), request, Timestamp::now())
        .await
        .map_err(|source| VolumeError::Reference {
            volume: volume.to_owned(),
            source,
        })
}

type Data = BTreeMap<String, Vec<u8>>;

async fn read_config_map(
    volume: &str,
    name: &str,
    optional: Option<bool>,
    pod: &Pod,
    references: &dyn References,
) -> Result<Data, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let found = references.config_map(namespace, name).await.map(|map| {
        let text = map
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.into_bytes()));
        let binary = map
            .binary_data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.0));
        text.chain(binary).collect()
    });
    unless_optional(volume, found, optional)
}

async fn read_secret(
    volume: &str,
    name: &str,
    optional: Option<bool>,
    pod: &Pod,
    references: &dyn References,
) -> Result<Data, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let found = references.secret(namespace, name).await;
    let found = found.map(|secret| {
        secret
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.0))
            .collect()
    });
    unless_optional(volume, found, optional)
}

fn unless_optional(
    volume: &str,
    found: Result<Data, ReferenceError>,
    optional: Option<bool>,
) -> Result<Data, VolumeError> {
    match found {
        Err(ReferenceError::NotFound { .. }) if optional.unwrap_or(false) => Ok(Data::new()),
        result => result.map_err(|source| VolumeError::Reference {
            volume: volume.to_owned(),
            source,
        }),
    }
}

/// All keys as files of their names, or only `items` under their paths.
fn select(
    volume: &str,
    mut data: Data,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: Option<bool>,
    files: &mut Files,
) -> Result<(), VolumeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files.extend(
            data.into_iter()
                .map(|(key, value)| (PathBuf::from(key), (value, mode(None, default_mode)))),
        );
        return Ok(());
    };
    for item in items {
        match data.remove(&item.key) {
            Some(value) => {
                files.insert(
                    file_path(volume, &item.path)?,
                    (value, mode(item.mode, default_mode)),
                );
            }
            None if optional.unwrap_or(false) => {}
            None => {
                return Err(VolumeError::Content {
                    volume: volume.to_owned(),
                    reason: format!("references non-existent config key: {}", item.key),
                });
            }
        }
    }
    Ok(())
}

fn downward(
    volume: &str,
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: Option<i32>,
    facts: Facts<'_>,
    files: &mut Files,
) -> Result<(), VolumeError> {
    for item in items.into_iter().flatten() {
        let fail = |error: EnvironmentError| VolumeError::Content {
            volume: volume.to_owned(),
            reason: error.to_string(),
        };
        let value = environment_field(
            item.field_ref.as_ref(),
            item.resource_field_ref.as_ref(),
            facts,
        )
        .map_err(fail)?;
        let path = file_path(volume, &item.path)?;
        files.insert(path, (value.into_bytes(), mode(item.mode, default_mode)));
    }
    Ok(())
}

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    own.or(default)
        .and_then(|mode| u32::try_from(mode).ok())
        .unwrap_or(0o644)
        & 0o777
}

fn file_path(volume: &str, path: &str) -> Result<PathBuf, VolumeError> {
    relative(path).ok_or_else(|| VolumeError::Content {
        volume: volume.to_owned(),
        reason: format!("path \"{path}\" must stay inside of the volume"),
    })
}
