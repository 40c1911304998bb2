use proptest::prelude::*;

use super::*;

fn sample_frame() -> Frame {
    Frame {
        kind: Kind::Hidden,
        epoch: Epoch(0x0102_0304_0506_0708),
        request: RequestId(0x1112_1314_1516_1718),
        attempt: Attempt(2),
        chunk: 0,
        chunks: 1,
        reason: None,
        step: 9,
        position: 40,
        tokens: 1,
        truncate_to: Some(33),
        hidden: 4,
        dtype: Some(Activation::Bf16),
        sample: true,
        resume_from: 5,
        payload: Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8]),
    }
}

/// The wire format is a promise to other versions: these bytes never change while VERSION is 1.
#[test]
fn golden_bytes() {
    let hex: String = message(&[sample_frame()]).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            "43504652",
            "01",
            "03",
            "03",
            "01",
            "0807060504030201",
            "1817161514131211",
            "0200",
            "0000",
            "0100",
            "0000",
            "09000000",
            "28000000",
            "01000000",
            "21000000",
            "04000000",
            "08000000",
            "05000000",
            "23c4f4cf",
            "0102030405060708"
        )
    );
}

#[test]
fn a_body_longer_than_one_frame_is_cut_and_packed_within_the_bounds() {
    let rows = vec![7u8; 2 * MAX_PAYLOAD + 10];
    let step = Hidden { tokens: 1, hidden: 1, ..Hidden::default() };
    let frames = step.frames(Epoch(1), &rows);
    assert_eq!(frames.iter().map(|f| f.payload.len()).collect::<Vec<_>>(), [MAX_PAYLOAD, MAX_PAYLOAD, 10]);
    let packed = messages(&frames);
    assert!(packed.iter().all(|m| m.len() <= MAX_MESSAGE));
    let back: Vec<Frame> =
        packed.into_iter().flat_map(|m| parse(m).collect::<Vec<_>>()).collect::<Result<_, _>>().unwrap();
    assert_eq!(back, frames);
}

#[test]
fn each_broken_field_is_named() {
    let good = message(&[sample_frame()]);
    let with = |at: usize, value: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = value;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..60]), &bytes[64..]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        parse(Bytes::from(bytes)).next().unwrap().unwrap_err()
    };
    assert_eq!(with(0, 0), FrameError::Magic);
    assert_eq!(with(4, 2), FrameError::Version(2));
    assert_eq!(with(5, 99), FrameError::Field("kind"));
    assert_eq!(with(6, 9), FrameError::Field("dtype"));
    assert_eq!(with(7, 0x80), FrameError::Field("flags"));
    assert_eq!(with(28, 0), FrameError::Field("chunk"));
    assert_eq!(with(30, 200), FrameError::Field("reason"));
    assert_eq!(with(55, 1), FrameError::Oversized(0x0100_0008));
    let mut flipped = good.to_vec();
    flipped[70] ^= 1;
    assert_eq!(parse(Bytes::from(flipped)).next().unwrap(), Err(FrameError::Checksum));
    assert!(matches!(parse(good.slice(..71)).next().unwrap(), Err(FrameError::Short { .. })));
    assert!(parse(Bytes::from(vec![0; MAX_MESSAGE + 1])).next().unwrap().is_err(), "an oversized message is refused");
}

#[test]
fn a_failure_crosses_the_wire_and_its_sentence_is_bounded() {
    let failure = Failure::new(ReasonCode::KvFull, "é".repeat(4000));
    let frame = Frame::fail(Epoch(1), RequestId(2), &failure);
    assert!(frame.payload.len() <= 1024);
    let back = parse(message(&[frame])).next().unwrap().unwrap().failure();
    assert_eq!(back.code, ReasonCode::KvFull);
    assert!(failure.message.starts_with(&back.message));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(Bytes::from(bytes)).collect::<Vec<_>>();
    }

    #[test]
    fn a_changed_byte_is_never_taken_for_the_same_frame(at in 0usize..72, bit in 0u8..8) {
        let good = message(&[sample_frame()]);
        let mut bytes = good.to_vec();
        bytes[at] ^= 1 << bit;
        prop_assert!(parse(Bytes::from(bytes)).next().unwrap().is_err());
    }
}
