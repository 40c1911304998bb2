use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_800_000_000;

fn operator(n: u8) -> Address {
    Address::repeat_byte(n)
}

fn proposal() -> Proposal {
    let seat =
        |n, start, end, units| Seat { operator: operator(n), layers: LayerRange::new(start, end).unwrap(), units };
    Proposal {
        pool: pool_id(operator(9), B256::repeat_byte(7)),
        epoch: 1,
        manifest: B256::repeat_byte(5),
        orchestrator: operator(9),
        seats: vec![seat(1, 0, 4, 600_000), seat(2, 4, 6, 400_000)],
        swaps: vec![Swap { place: 1, standby: operator(3) }],
        rate: FlowRate::from_units_per_second(100),
        expiry: NOW + 86_400,
    }
}

fn domain() -> RegistryDomain {
    RegistryDomain { chain: 16_602, registry: operator(0xaa) }
}

#[test]
fn any_difference_in_proposal_chain_or_registry_is_another_digest() {
    let mut digests = vec![proposal().digest(&domain())];
    digests.push(proposal().digest(&RegistryDomain { chain: 1, ..domain() }));
    digests.push(proposal().digest(&RegistryDomain { registry: operator(0xab), ..domain() }));
    let changes: [fn(&mut Proposal); 12] = [
        |p| p.pool = B256::ZERO,
        |p| p.epoch += 1,
        |p| p.manifest = B256::ZERO,
        |p| p.orchestrator = operator(8),
        |p| p.seats.swap(0, 1),
        |p| p.seats[0].units += 1,
        |p| p.seats[0].layers = LayerRange::new(0, 3).unwrap(),
        |p| p.swaps.clear(),
        |p| p.swaps[0].place = 0,
        |p| p.rate = FlowRate::from_units_per_second(101),
        |p| p.rate = FlowRate::from_units_per_second(u64::MAX),
        |p| p.expiry += 1,
    ];
    for change in changes {
        let mut other = proposal();
        change(&mut other);
        digests.push(other.digest(&domain()));
    }
    let count = digests.len();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), count, "two different proposals have one digest");
    let registration = domain().registration_digest(operator(1), NOW);
    assert_ne!(registration, domain().registration_digest(operator(1), NOW + 1));
}

#[test]
fn proposals_that_the_registry_would_refuse_are_not_signed() {
    type Case = (fn(&mut Proposal), ProposalError);
    assert_eq!(proposal().check(NOW), Ok(()));
    let cases: [Case; 11] = [
        (|p| p.seats.clear(), ProposalError::Members(0)),
        (|p| p.seats = vec![p.seats[0]; 17], ProposalError::Members(17)),
        (|p| p.seats[1].operator = operator(1), ProposalError::Twice(operator(1))),
        (|p| p.seats[0].operator = Address::ZERO, ProposalError::ZeroAddress),
        (|p| p.seats[0].layers = LayerRange::new(1, 4).unwrap(), ProposalError::Layers(0)),
        (|p| p.seats[1].layers = LayerRange::new(3, 6).unwrap(), ProposalError::Layers(1)),
        (|p| p.seats[1].units -= 1, ProposalError::Units),
        (|p| (p.seats[0].units, p.seats[1].units) = (UNITS, 0), ProposalError::Units),
        (|p| p.swaps[0].place = 2, ProposalError::Swap(0)),
        (|p| p.swaps[0].standby = operator(2), ProposalError::Twice(operator(2))),
        (|p| p.rate = FlowRate::ZERO, ProposalError::Rate),
    ];
    for (break_it, why) in cases {
        let mut bad = proposal();
        break_it(&mut bad);
        assert_eq!(bad.check(NOW), Err(why));
    }
    assert_eq!(proposal().check(NOW + 86_400), Err(ProposalError::Expired));
}

#[test]
fn an_operator_signs_only_for_its_own_layers_and_its_price() {
    let layers = |start, end| LayerRange::new(start, end).unwrap();
    let asks = FlowRate::from_units_per_second;
    let good = proposal();
    assert_eq!(good.acceptable_to(operator(2), layers(4, 6), asks(40), NOW), Ok(()));
    let too_little = ProposalError::TooLittle { offered: asks(40), wanted: asks(41) };
    assert_eq!(good.acceptable_to(operator(2), layers(4, 6), asks(41), NOW), Err(too_little));
    let other_layers = good.acceptable_to(operator(2), layers(0, 4), asks(0), NOW);
    assert!(matches!(other_layers, Err(ProposalError::NotMine { .. })), "layers it does not hold");
    let stranger = good.acceptable_to(operator(7), layers(4, 6), asks(0), NOW);
    assert!(matches!(stranger, Err(ProposalError::NotMine { .. })), "a coalition it is not part of");
}

#[test]
fn everybody_who_is_bound_signs_once_and_in_the_registrys_order() {
    let present = [operator(2), operator(4)];
    let signers = proposal().signers(operator(9), &present);
    assert_eq!(signers, [operator(9), operator(1), operator(2), operator(3), operator(4)]);
    assert_eq!(proposal().signers(operator(1), &[]), [operator(1), operator(2), operator(3)], "an owner who serves");
}

#[test]
fn a_registry_is_written_and_read_back() {
    assert_eq!(domain().to_string().parse(), Ok(domain()));
    for wrong in ["", "16602", "16602:", ":0xaa", "16602:0xaa", "one:0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
        assert_eq!(wrong.parse::<RegistryDomain>(), Err(RegistryDomainError), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn shares_are_the_whole_and_follow_the_weights(weights in proptest::collection::vec(0_u64..1 << 50, 1..=16)) {
        let shares = shares(&weights);
        prop_assert_eq!(shares.iter().sum::<u32>(), UNITS);
        prop_assert!(shares.iter().all(|&share| share > 0), "nobody works for nothing");
        for (a, b) in (0..weights.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
            if weights[a] > weights[b] {
                prop_assert!(shares[a] + 1 >= shares[b], "who does more has no less, but for a unit of rounding");
            }
        }
    }
}
