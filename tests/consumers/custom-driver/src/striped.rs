//! `striped`: a disk whose stripes lie on two children in turn.
//!
//! The mapping answers for the rest of the stripe that a request begins in, so a request inside one stripe never comes
//! here: the core follows the mapping to the child. What crosses a stripe takes the slow path and is cut.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{
    ChildName, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, Limits, OptionReader, RequestFlags,
    StatusExtent,
};
use block_gs::{DriverType, GraphError, GraphResult, NoControl, OpenContext, Opened};
use block_io::{Access, Driver, Edge, Mapping, Req};

const STRIPE_DEFAULT: u64 = 64 << 10;
const STRIPE_MIN: u64 = 4096;

/// The engine.
struct Striped {
    children: [Edge; 2],
    stripe: u64,
    limits: Limits,
}

/// A part of a range that lies in one stripe.
struct Piece<'a> {
    child: &'a Edge,
    offset: HostOffset,
    len: u64,
    /// Where it begins in the range, in bytes.
    at: u64,
}

impl Striped {
    /// The child that has this byte, where, and for how many bytes.
    fn place(&self, offset: u64) -> (&Edge, HostOffset, u64) {
        let (number, within) = (offset / self.stripe, offset % self.stripe);
        let place = number / 2 * self.stripe + within;
        (&self.children[(number % 2) as usize], HostOffset(place), self.stripe - within)
    }

    fn pieces(&self, range: GuestRange) -> impl Iterator<Item = Piece<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let left = range.len() - at;
            let (child, offset, len) = self.place(range.offset().0 + at);
            let piece = Piece { child, offset, len: len.min(left), at };
            at += piece.len;
            (left > 0).then_some(piece)
        })
    }
}

#[async_trait]
impl Driver for Striped {
    fn format_name(&self) -> &'static str {
        "striped"
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn map_cached(&self, _access: Access, range: GuestRange) -> Mapping<'_> {
        let (edge, offset, len) = self.place(range.offset().0);
        Mapping::Child { edge, offset, len }
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        let [left, right] = &self.children;
        let shorter = left.refresh_length(req).await?.min(right.refresh_length(req).await?);
        Ok(shorter / self.stripe * self.stripe * 2)
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        for piece in self.pieces(GuestRange::new(offset.0, buf.len() as u64)?) {
            piece.child.read(req, piece.offset, &buf.slice(piece.at as usize, piece.len as usize)).await?;
        }
        Ok(())
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        for piece in self.pieces(GuestRange::new(offset.0, buf.len() as u64)?) {
            piece.child.write(req, piece.offset, &buf.slice(piece.at as usize, piece.len as usize), flags).await?;
        }
        Ok(())
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        for piece in self.pieces(range) {
            piece.child.zero(req, piece.offset, piece.len, flags).await?;
        }
        Ok(())
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        for piece in self.pieces(range) {
            piece.child.discard(req, piece.offset, piece.len).await?;
        }
        Ok(())
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        for child in &self.children {
            child.flush(req).await?;
        }
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let (child, offset, len) = self.place(range.offset().0);
        let extent = child.block_status(req, offset, len.min(range.len())).await?;
        // The child's place and its end are not ours.
        let status = if extent.is_zero() { StatusExtent::zero(extent.len) } else { StatusExtent::data(extent.len) };
        Ok(status)
    }
}

/// The driver, as the graph knows it: `driver=striped,stripe=…,children.0=…,children.1=…`.
pub(crate) struct StripedType;

#[async_trait(?Send)]
impl DriverType for StripedType {
    fn name(&self) -> &'static str {
        "striped"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let stripe = options.take_size("stripe")?.unwrap_or(STRIPE_DEFAULT);
        if !stripe.is_power_of_two() || stripe < STRIPE_MIN {
            return Err(options.invalid("stripe", "a power of two from 4096 on").into());
        }
        let specs = options.take_list("children", |item| item.into_child())?.unwrap_or_default();
        let Ok([left, right]) = <[_; 2]>::try_from(specs) else {
            return Err(GraphError::Open("'children' of driver 'striped' must be two".into()));
        };
        let left = context.open_child(ChildName::indexed("children", 0), ChildRole::DATA, left).await?;
        let right = context.open_child(ChildName::indexed("children", 1), ChildRole::DATA, right).await?;
        let open = |req| async move {
            let limits = both(left.limits(&req)?, right.limits(&req)?);
            Ok(Striped { children: [left, right], stripe, limits })
        };
        let engine = context.run("Could not open the stripes", open).await?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }
}

/// What both children can do. Requests are cut to each child's own maximum further down.
fn both(one: Limits, other: Limits) -> Limits {
    Limits {
        request_alignment: one.request_alignment.max(other.request_alignment),
        memory_alignment: one.memory_alignment.max(other.memory_alignment),
        ..Limits::NONE
    }
}
