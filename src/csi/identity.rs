//! The Identity service: answers from constants, but for Probe.

use coffer_proto::csi::identity_server::Identity;
use coffer_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, ProbeRequest, ProbeResponse,
};
use tonic::{Request, Response, Status};

use crate::health::Health;

pub(super) struct IdentityService {
    pub(super) driver_name: String,
    pub(super) health: Health,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        // A node-only plugin for inline volumes: no Controller service, no topology.
        Ok(Response::new(GetPluginCapabilitiesResponse::default()))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        // No store is asked, and no API server: a restart would mend neither.
        self.health.healthy().map_err(Status::failed_precondition)?;
        let ready = Some(self.health.ready().is_ok());
        Ok(Response::new(ProbeResponse { ready }))
    }
}
