//! What the monitor does for people: commands of the I/O exerciser on a node or a device.

use block_gs::WeakGlobalState;
use block_qmp::{Exercised, HumanCommands, Printed};
use cairn_io::output::Output;
use cairn_io::session::Session;

/// How much of what a command prints is answered, in bytes.
const PRINTED_MAX: usize = 1 << 20;

/// The commands, on the nodes of a block layer.
pub(crate) struct Human(pub(crate) WeakGlobalState);

impl HumanCommands for Human {
    fn qemu_io(&self, what: Exercised, command: Vec<u8>) -> Printed {
        let gs = self.0.upgrade();
        Box::pin(async move {
            let Some(gs) = gs else { return String::new() };
            let out = Output::kept(PRINTED_MAX);
            let session = match what {
                Exercised::Node(node) => Session::on_node(&gs, out.clone(), &node).await,
                Exercised::Device(backend) => Ok(Session::on_device(&gs, out.clone(), backend)),
            };
            match session {
                Ok(mut session) => {
                    // The user can read whether it failed.
                    let _ = session.run(&command).await;
                    session.finish().await;
                    let _ = session.close().await;
                }
                Err(error) => out.fail(error.report()),
            }
            String::from_utf8_lossy(&out.take()).into_owned()
        })
    }
}
