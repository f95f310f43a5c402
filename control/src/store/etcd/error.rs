//! What etcd's refusals mean. It tells them apart by code and words only.

use etcd_client::Error as EtcdError;
use tonic::Code;

use crate::store::{Error, LeaseId, VALUE_LIMIT};

/// A refusal that callers are told of by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The revision is compacted.
    Compacted,
    /// The revision has not happened yet.
    Future,
    /// There is no such lease.
    NoLease,
    /// The request is over etcd's limit.
    TooLarge,
    /// etcd's quota or disk is full.
    Full,
}

pub(super) fn refusal(error: &EtcdError) -> Option<Refusal> {
    let EtcdError::GRpcStatus(status) = error else {
        return None;
    };
    let message = status.message();
    match status.code() {
        Code::OutOfRange if message.contains("compacted") => Some(Refusal::Compacted),
        Code::OutOfRange if message.contains("future revision") => Some(Refusal::Future),
        Code::NotFound if message.contains("lease") => Some(Refusal::NoLease),
        Code::InvalidArgument if message.contains("too large") => Some(Refusal::TooLarge),
        Code::ResourceExhausted if message.contains("space") => Some(Refusal::Full),
        _ => None,
    }
}

/// Whether asking again, or asking another member, can't help.
pub(super) fn is_final(error: &EtcdError) -> bool {
    let EtcdError::GRpcStatus(status) = error else {
        return !matches!(error, EtcdError::TransportError(_));
    };
    refusal(error).is_some()
        || matches!(
            status.code(),
            Code::InvalidArgument
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::Unimplemented
                | Code::FailedPrecondition
                | Code::NotFound
                | Code::OutOfRange
        )
}

/// The error of a request that is about no revision; callers add which lease or size it was.
pub(super) fn unavailable(error: EtcdError) -> Error {
    match refusal(&error) {
        Some(Refusal::NoLease) => Error::NoSuchLease(LeaseId(0)),
        Some(Refusal::TooLarge) => Error::TooLarge {
            size: 0,
            limit: VALUE_LIMIT,
        },
        Some(Refusal::Full) => Error::Full(Box::new(error)),
        Some(Refusal::Compacted | Refusal::Future) | None => Error::Unavailable(Box::new(error)),
    }
}
