//! stub
#![allow(missing_docs, reason = "stub")]
use hsm_common::filter::*;
use std::os::fd::*;
use std::path::Path;
#[derive(Debug)]
pub struct Maps;
#[derive(Debug)]
pub struct Requests;
#[derive(Debug)]
pub struct Guard;
#[derive(Debug)]
pub struct Settings;
#[derive(Debug)]
pub enum Mode {
    Guard,
    Filter,
}
#[derive(Debug)]
pub enum Answer {
    Online,
    Watched,
    Deny(i32),
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct BpfError;
impl Settings {
    pub fn new(_: &Path, _: &str) -> Result<Self, BpfError> {
        Ok(Self)
    }
}
impl Guard {
    pub fn install(_: &Settings) -> Result<Maps, BpfError> {
        Ok(Maps)
    }
}
impl Maps {
    pub fn open(_: &Path) -> Result<Option<Self>, BpfError> {
        Ok(None)
    }
    pub fn requests(&self) -> Result<Requests, BpfError> {
        Ok(Requests)
    }
    pub fn exempt(&self, _: rustix::process::Pid) -> Result<(), BpfError> {
        Ok(())
    }
    pub fn serve(&self, _: rustix::process::Pid) -> Result<(), BpfError> {
        Ok(())
    }
    pub fn beat(&self, _: u64) -> Result<(), BpfError> {
        Ok(())
    }
    pub fn answer(&self, _: u64, _: Answer) -> Result<(), BpfError> {
        Ok(())
    }
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, BpfError> {
        Ok(vec![])
    }
    pub fn cover(&self, _: Uuid, _: Mode) -> Result<(), BpfError> {
        Ok(())
    }
}
impl Requests {
    pub fn next(&mut self) -> Option<Request> {
        None
    }
}
impl AsFd for Requests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
}
