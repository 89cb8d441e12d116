//! What csi-sanity makes its volumes with: a Controller service that does nothing but invent ids, on a
//! socket of its own, since Coffer has none.

use std::path::Path;

use coffer_proto::csi::controller_server::{Controller, ControllerServer};
use coffer_proto::csi::controller_service_capability::{self, Rpc, rpc};
use coffer_proto::csi::identity_server::{Identity, IdentityServer};
use coffer_proto::csi::{
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
    ControllerServiceCapability, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse,
    GetPluginInfoRequest, GetPluginInfoResponse, ProbeRequest, ProbeResponse, Volume,
};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The shim, served until this is dropped.
pub(crate) struct Shim {
    _runtime: Runtime,
}

impl Shim {
    pub(crate) fn serve(socket: &Path) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let entered = runtime.enter();
        let listener = UnixListener::bind(socket).expect("a socket");
        let serve = Server::builder()
            .add_service(IdentityServer::new(Service))
            .add_service(ControllerServer::new(Service))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(serve);
        drop(entered);
        Self { _runtime: runtime }
    }
}

struct Service;

#[tonic::async_trait]
impl Controller for Service {
    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let volumes = Rpc {
            r#type: rpc::Type::CreateDeleteVolume as i32,
        };
        // None at all would be an error to the suite.
        Ok(Response::new(ControllerGetCapabilitiesResponse {
            capabilities: vec![ControllerServiceCapability {
                r#type: Some(controller_service_capability::Type::Rpc(volumes)),
            }],
        }))
    }

    /// The parameters come back as the volume's context, which is what a node gets to see.
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(CreateVolumeResponse {
            volume: Some(Volume {
                capacity_bytes: 0,
                volume_id: request.name,
                volume_context: request.parameters,
            }),
        }))
    }

    async fn delete_volume(
        &self,
        _: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

/// The suite asks both sockets who they are.
#[tonic::async_trait]
impl Identity for Service {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: "shim.coffer.test".to_owned(),
            vendor_version: "1".to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}
