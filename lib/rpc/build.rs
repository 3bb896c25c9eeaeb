//! Compiles the protocol without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=agent.proto");
    println!("cargo:rerun-if-changed=controller.proto");
    println!("cargo:rerun-if-changed=peer.proto");
    let descriptors = protox::compile(["agent.proto", "controller.proto", "peer.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
