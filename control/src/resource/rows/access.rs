//! The rows of access control: roles, their bindings, and the questions about access.

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenReview};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::schemars::JsonSchema;

use super::{id, row};
use crate::api::ResourceId;
use crate::api::rbac::GROUP;
use crate::api::reviews::Question;
use crate::resource::kinds::rbac::{Bindings, Reviews, Roles};
use crate::resource::schema::Builder;
use crate::resource::{NameRule, Resource, Verb};

/// Cluster roles.
pub const CLUSTER_ROLES: ResourceId = id(GROUP, "v1", "clusterroles");
/// Bindings of cluster roles, everywhere.
pub const CLUSTER_ROLE_BINDINGS: ResourceId = id(GROUP, "v1", "clusterrolebindings");
/// Roles.
pub const ROLES: ResourceId = id(GROUP, "v1", "roles");
/// Bindings of roles and cluster roles in a namespace.
pub const ROLE_BINDINGS: ResourceId = id(GROUP, "v1", "rolebindings");

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// A kind that is only asked.
fn review<T: JsonSchema>(
    builder: &mut Builder,
    id: ResourceId,
    (kind, singular): (&'static str, &'static str),
    question: Question,
) -> Resource {
    Resource {
        namespaced: false,
        verbs: &[Verb::Create],
        question: Some(question),
        ..row::<T>(builder, id, kind, singular, Reviews)
    }
}

/// The rows, in the order of discovery.
pub fn rows(builder: &mut Builder) -> Vec<Resource> {
    let mut rows = reviews(builder);
    rows.extend(roles(builder));
    rows
}

fn reviews(builder: &mut Builder) -> Vec<Resource> {
    vec![
        review::<SelfSubjectReview>(
            builder,
            id(AUTHENTICATION, "v1", "selfsubjectreviews"),
            ("SelfSubjectReview", "selfsubjectreview"),
            Question::WhoAmI,
        ),
        review::<TokenReview>(
            builder,
            id(AUTHENTICATION, "v1", "tokenreviews"),
            ("TokenReview", "tokenreview"),
            Question::WhoseToken,
        ),
        Resource {
            namespaced: true,
            ..review::<LocalSubjectAccessReview>(
                builder,
                id(AUTHORIZATION, "v1", "localsubjectaccessreviews"),
                ("LocalSubjectAccessReview", "localsubjectaccessreview"),
                Question::MayThey,
            )
        },
        review::<SelfSubjectAccessReview>(
            builder,
            id(AUTHORIZATION, "v1", "selfsubjectaccessreviews"),
            ("SelfSubjectAccessReview", "selfsubjectaccessreview"),
            Question::MayI,
        ),
        review::<SelfSubjectRulesReview>(
            builder,
            id(AUTHORIZATION, "v1", "selfsubjectrulesreviews"),
            ("SelfSubjectRulesReview", "selfsubjectrulesreview"),
            Question::WhatMayI,
        ),
        review::<SubjectAccessReview>(
            builder,
            id(AUTHORIZATION, "v1", "subjectaccessreviews"),
            ("SubjectAccessReview", "subjectaccessreview"),
            Question::MayThey,
        ),
    ]
}

fn roles(builder: &mut Builder) -> Vec<Resource> {
    let (wide, narrow) = (true, false);
    vec![
        Resource {
            namespaced: false,
            names: NameRule::Path,
            ..row::<ClusterRoleBinding>(
                builder,
                CLUSTER_ROLE_BINDINGS,
                "ClusterRoleBinding",
                "clusterrolebinding",
                Bindings(wide),
            )
        },
        Resource {
            namespaced: false,
            names: NameRule::Path,
            ..row::<ClusterRole>(
                builder,
                CLUSTER_ROLES,
                "ClusterRole",
                "clusterrole",
                Roles(wide),
            )
        },
        Resource {
            names: NameRule::Path,
            ..row::<RoleBinding>(
                builder,
                ROLE_BINDINGS,
                "RoleBinding",
                "rolebinding",
                Bindings(narrow),
            )
        },
        Resource {
            names: NameRule::Path,
            ..row::<Role>(builder, ROLES, "Role", "role", Roles(narrow))
        },
    ]
}
