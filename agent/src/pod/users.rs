//! Who a container runs as: the pod's word, else the image's, looked up in the image's own /etc/passwd and /etc/group.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use k8s_openapi::api::core::v1::{Container, Pod};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
};

use crate::runtime::spec::User;

/// Why a container's user can't be told; a `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The image names a user that its passwd file lacks.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// The image names a group that its group file lacks.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// runAsNonRoot, and the image runs as root.
    #[error(
        "container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})"
    )]
    Root {
        /// name_namespace(uid).
        pod: String,
        /// Its name.
        container: String,
    },
    /// The image's files can't be read.
    #[error("cannot read the image's {file}: {source}")]
    Io {
        /// Inside the image.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A container's user and home, in the image that is mounted at `root`.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    image_user: &str,
    root: &Path,
) -> Result<(User, String), UserError> {
    let own = container.security_context.as_ref();
    let shared = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    let wanted_user = own
        .and_then(|own| own.run_as_user)
        .or(shared.and_then(|shared| shared.run_as_user));
    let wanted_group = own
        .and_then(|own| own.run_as_group)
        .or(shared.and_then(|shared| shared.run_as_group));
    let user_part = wanted_user.map_or_else(|| image_user.to_owned(), |uid| uid.to_string());
    let mut found = lookup(&user_part, &passwd, &group)?;
    if let Some(gid) = wanted_group.and_then(|gid| u32::try_from(gid).ok()) {
        found.user.gid = gid;
    }
    let extra = shared.into_iter().flat_map(|shared| {
        shared
            .supplemental_groups
            .iter()
            .flatten()
            .chain(shared.fs_group.as_ref())
            .copied()
    });
    found
        .user
        .groups
        .extend(extra.filter_map(|gid| u32::try_from(gid).ok()));
    found.user.groups.sort_unstable();
    found.user.groups.dedup();
    let non_root = own
        .and_then(|own| own.run_as_non_root)
        .or(shared.and_then(|shared| shared.run_as_non_root));
    if non_root == Some(true) && found.user.uid == 0 {
        return Err(UserError::Root {
            pod: super::full_name(pod),
            container: container.name.clone(),
        });
    }
    Ok((found.user, found.home))
}

struct Found {
    user: User,
    home: String,
}

/// "", "user", "1000", "user:group", "1000:1000".
fn lookup(text: &str, passwd: &str, group: &str) -> Result<Found, UserError> {
    let (name, group_name) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let entry = passwd.lines().map(fields).find(|fields| {
        fields.first() == Some(&name) || number.is_some_and(|uid| field(fields, 2) == Some(uid))
    });
    let uid = match (&entry, number) {
        (Some(fields), _) => field(fields, 2),
        (None, number) => number,
    };
    let uid = uid.ok_or_else(|| UserError::UnknownUser(name.to_owned()))?;
    let gid = match group_name {
        None => entry
            .as_ref()
            .and_then(|fields| field(fields, 3))
            .unwrap_or(0),
        Some(wanted) => {
            let entry = group
                .lines()
                .map(fields)
                .find(|fields| fields.first() == Some(&wanted));
            let gid = entry
                .and_then(|fields| field(&fields, 2))
                .or_else(|| wanted.parse().ok());
            gid.ok_or_else(|| UserError::UnknownGroup(wanted.to_owned()))?
        }
    };
    let own_name = entry.as_ref().and_then(|fields| fields.first().copied());
    let member = |fields: &Vec<&str>| {
        own_name.is_some_and(|name| {
            fields
                .get(3)
                .is_some_and(|members| members.split(',').any(|one| one == name))
        })
    };
    // Naming a group names all of them, as in other runtimes.
    let groups = if group_name.is_some() {
        Vec::new()
    } else {
        group
            .lines()
            .map(fields)
            .filter(member)
            .filter_map(|fields| field(&fields, 2))
            .collect()
    };
    let home = entry
        .as_ref()
        .and_then(|fields| fields.get(5))
        .filter(|home| !home.is_empty());
    Ok(Found {
        user: User { uid, gid, groups },
        home: home.map_or("/", |home| home).to_owned(),
    })
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

fn field(fields: &[&str], index: usize) -> Option<u32> {
    fields.get(index)?.parse().ok()
}

/// A file of the image, which may be a link: it must not lead out of the image.
fn read(root: &Path, file: &'static str) -> Result<String, UserError> {
    let open = || -> io::Result<String> {
        let root = File::open(root)?;
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = match openat2(&root, file, how) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(String::new()),
            result => File::from(result?),
        };
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    open().map_err(|source| UserError::Io { file, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:90:web,other\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let cases = [
            ("", (0, 0, vec![], "/root")),
            ("web", (33, 34, vec![90], "/srv")),
            ("33", (33, 34, vec![90], "/srv")),
            ("web:logs", (33, 90, vec![], "/srv")),
            ("1000", (1000, 0, vec![], "/")),
            ("1000:1001", (1000, 1001, vec![], "/")),
        ];
        for (text, (uid, gid, groups, home)) in cases {
            let found = lookup(text, PASSWD, GROUP).expect(text);
            assert_eq!(found.user, User { uid, gid, groups }, "{text}");
            assert_eq!(found.home, home, "{text}");
        }
    }

    #[test]
    fn unknown_users_are_named() {
        assert!(
            matches!(lookup("nobody", PASSWD, GROUP), Err(UserError::UnknownUser(name)) if name == "nobody")
        );
        assert!(
            matches!(lookup("web:none", PASSWD, GROUP), Err(UserError::UnknownGroup(name)) if name == "none")
        );
    }
}
