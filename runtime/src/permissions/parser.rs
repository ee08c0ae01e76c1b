//! The parser that deno_permissions needs, for the only permission it checks for xs: net. All
//! others are refused here, since xs itself checks files and environment variables.

use std::borrow::Cow;
use std::path::Path;

use deno_permissions::{
    AllowRunDescriptorParseResult, DenyRunDescriptor, EnvDescriptor, EnvDescriptorParseError,
    FfiDescriptor, Host, ImportDescriptor, NetDescriptor, NetDescriptorParseError,
    PathQueryDescriptor, PathResolveError, PermissionDescriptorParser, ReadDescriptor,
    RunDescriptorParseError, RunQueryDescriptor, SpecialFilePathQueryDescriptor, SysDescriptor,
    SysDescriptorParseError, WriteDescriptor,
};

#[derive(Debug)]
pub(super) struct NetOnly;

fn no_paths<T>() -> Result<T, PathResolveError> {
    Err(PathResolveError::EmptyPath)
}

impl PermissionDescriptorParser for NetOnly {
    fn parse_net_descriptor(&self, text: &str) -> Result<NetDescriptor, NetDescriptorParseError> {
        // deno_permissions parses only IPv4 ranges: it takes the colons of IPv6 for a port.
        if let Ok(range) = text.parse() {
            return Ok(NetDescriptor(Host::IpSubnet(range), None));
        }
        NetDescriptor::parse_for_list(text)
    }

    fn parse_net_query(&self, text: &str) -> Result<NetDescriptor, NetDescriptorParseError> {
        NetDescriptor::parse_for_query(text)
    }

    fn parse_import_descriptor(
        &self,
        text: &str,
    ) -> Result<ImportDescriptor, NetDescriptorParseError> {
        ImportDescriptor::parse_for_list(text)
    }

    fn parse_read_descriptor(&self, _text: &str) -> Result<ReadDescriptor, PathResolveError> {
        no_paths()
    }

    fn parse_write_descriptor(&self, _text: &str) -> Result<WriteDescriptor, PathResolveError> {
        no_paths()
    }

    fn parse_env_descriptor(&self, _text: &str) -> Result<EnvDescriptor, EnvDescriptorParseError> {
        Err(EnvDescriptorParseError)
    }

    fn parse_sys_descriptor(&self, _text: &str) -> Result<SysDescriptor, SysDescriptorParseError> {
        Err(SysDescriptorParseError::Empty)
    }

    fn parse_allow_run_descriptor(
        &self,
        _text: &str,
    ) -> Result<AllowRunDescriptorParseResult, RunDescriptorParseError> {
        Err(RunDescriptorParseError::EmptyRunQuery)
    }

    fn parse_deny_run_descriptor(
        &self,
        _text: &str,
    ) -> Result<DenyRunDescriptor, PathResolveError> {
        no_paths()
    }

    fn parse_ffi_descriptor(&self, _text: &str) -> Result<FfiDescriptor, PathResolveError> {
        no_paths()
    }

    fn parse_path_query<'a>(
        &self,
        _path: Cow<'a, Path>,
    ) -> Result<PathQueryDescriptor<'a>, PathResolveError> {
        no_paths()
    }

    fn parse_special_file_descriptor<'a>(
        &self,
        _path: PathQueryDescriptor<'a>,
    ) -> Result<SpecialFilePathQueryDescriptor<'a>, PathResolveError> {
        no_paths()
    }

    fn parse_run_query<'a>(
        &self,
        _requested: &'a str,
    ) -> Result<RunQueryDescriptor<'a>, RunDescriptorParseError> {
        Err(RunDescriptorParseError::EmptyRunQuery)
    }
}
