//! The kernel programs, one entry file a hook.
#![no_std]
