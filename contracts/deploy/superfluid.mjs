// Superfluid by the direct route: every contract through our deployer, set up in the transaction that deploys it,
// governance in our hands, not upgradable as a deployment. The order of steps is that of Superfluid's own framework.
import { concat, keccak256, parseEther, stringToHex, zeroAddress } from "viem";
import { call, callIt } from "./deployer.mjs";

const CALLBACK_GAS_LIMIT = 3_000_000n;
const CFA = keccak256(stringToHex("org.superfluid-finance.agreements.ConstantFlowAgreement.v1"));
const GDA = keccak256(stringToHex("org.superfluid-finance.agreements.GeneralDistributionAgreement.v1"));
const ACL_ADMIN = keccak256(stringToHex("ACL_POOL_CONNECT_EXCLUSIVE_ROLE_ADMIN"));
const ACL_ROLE = keccak256(stringToHex("ACL_POOL_CONNECT_EXCLUSIVE_ROLE"));
const ERC1820 = "0x1820a4B7618BdE71Dce8cdc73aAB6C95905faD24";

export async function deploySuperfluid(deployer, superfluid, { account, liquidationPeriod, patricianPeriod }) {
  const at = deployer.addresses;
  const [governance, host, beacon, pool, acl, forwarder, proxy] = [
    "utils/TestGovernance.sol", "superfluid/Superfluid.sol", "upgradability/SuperfluidUpgradeableBeacon.sol",
    "agreements/gdav1/SuperfluidPool.sol", "utils/SimpleACL.sol", "utils/SimpleForwarder.sol", "upgradability/UUPSProxy.sol",
  ].map((file) => superfluid.artifact(file));
  const deploy = (name, file, args, calls) => deployer.contract(name, superfluid.artifact(file), args, calls);

  await deployer.keyless("erc1820Registry", ERC1820, {
    sender: "0xa990077c3205cbDf861e17Fa532eeB069cE9fF96",
    value: parseEther("0.08"),
    signed: concat([
      "0xf90a388085174876e800830c35008080b909e5",
      `0x${superfluid.erc1820Code}`,
      `0x1ba0${"1820".repeat(16)}a0${"1820".repeat(16)}`,
    ]),
  });
  await deploy("slotsBitmapLibrary", "libs/SlotsBitmapLibrary.sol");
  await deploy("superfluidPoolDeployerLibrary", "agreements/gdav1/SuperfluidPoolDeployerLibrary.sol");

  await deployer.contract("governance", governance);
  await deployer.contract("simpleForwarder", forwarder);
  await deploy("erc2771Forwarder", "utils/ERC2771Forwarder.sol");
  await deployer.contract("simpleAcl", acl);
  const upgradable = false, listsApps = false;
  await deployer.contract(
    "host", host,
    [!upgradable, listsApps, CALLBACK_GAS_LIMIT, at.simpleForwarder, at.erc2771Forwarder, at.simpleAcl],
    (hostAt) => [
      call(at.simpleForwarder, forwarder.abi, "transferOwnership", [hostAt]),
      call(at.erc2771Forwarder, forwarder.abi, "transferOwnership", [hostAt]),
      callIt(host.abi, "initialize", [at.governance]),
      call(at.governance, governance.abi, "initialize", [hostAt, account, liquidationPeriod, patricianPeriod, []]),
    ],
  );
  const govern = (functionName, ...args) => call(at.governance, governance.abi, functionName, [at.host, ...args]);

  await deploy("cfa", "agreements/ConstantFlowAgreementV1.sol", [at.host], (cfa) => [govern("registerAgreementClass", cfa)]);
  // The agreement wants the pools' beacon, and the pools' logic wants the agreement: the beacon starts with a stand-in.
  await deployer.contract("poolStandIn", pool, [zeroAddress], () => [callIt(pool.abi, "castrate")]);
  await deployer.contract("poolBeacon", beacon, [at.poolStandIn]);
  await deploy("gda", "agreements/gdav1/GeneralDistributionAgreementV1.sol", [at.host, at.poolBeacon], (gda) => [
    govern("registerAgreementClass", gda),
    call(at.simpleAcl, acl.abi, "setRoleAdmin", [ACL_ROLE, ACL_ADMIN]),
    call(at.simpleAcl, acl.abi, "grantRole", [ACL_ADMIN, gda]),
  ]);
  await deployer.contract("poolLogic", pool, [at.gda], (logic) => [
    callIt(pool.abi, "castrate"),
    call(at.poolBeacon, beacon.abi, "upgradeTo", [logic]),
    call(at.poolBeacon, beacon.abi, "transferOwnership", [at.host]),
  ]);

  const nft = superfluid.artifact("agreements/gdav1/PoolAdminNFT.sol");
  await deployer.contract("poolAdminNftLogic", nft, [at.host, at.gda], () => [callIt(nft.abi, "castrate")]);
  await deployer.contract("poolAdminNft", proxy, [], () => [
    callIt(proxy.abi, "initializeProxy", [at.poolAdminNftLogic]),
    callIt(nft.abi, "initialize", ["Pool Admin NFT", "PA"]),
  ]);

  for (const [name, file] of [["cfaForwarder", "utils/CFAv1Forwarder.sol"], ["gdaForwarder", "utils/GDAv1Forwarder.sol"]]) {
    await deploy(name, file, [at.host], (it) => [govern("enableTrustedForwarder", zeroAddress, it)]);
  }
  await deploy("superTokenLogic", "superfluid/SuperToken.sol", [at.host, at.poolAdminNft]);
  await deploy(
    "superTokenFactory", "superfluid/SuperTokenFactory.sol",
    [at.host, at.superTokenLogic, at.poolAdminNftLogic, zeroAddress],
    (factory) => [govern("updateContracts", zeroAddress, [], factory, zeroAddress)],
  );
  await deploy("batchLiquidator", "utils/BatchLiquidator.sol", [at.host]);
}

/** USDCx: what Superfluid's factory would make, at an address that does not depend on the factory's nonce. */
export async function deployUsdcx(deployer, superfluid) {
  const at = deployer.addresses;
  const proxy = superfluid.artifact("upgradability/UUPSProxy.sol");
  const token = superfluid.artifact("superfluid/SuperToken.sol");
  await deployer.contract("usdcx", proxy, [], () => [
    callIt(proxy.abi, "initializeProxy", [at.superTokenLogic]),
    callIt(token.abi, "initialize", [at.usdc, 6, "Super USD Coin", "USDCx"]),
  ]);
}

/** Gives governance to its owner, as the last step: whoever has it can change every token's and pool's logic. */
export async function handOverGovernance(deployer, chain, superfluid, { account, minimumDeposit }) {
  const at = deployer.addresses;
  const { abi } = superfluid.artifact("utils/TestGovernance.sol");
  if ((await chain.read(at.governance, abi, "owner")) === account) return;
  const calls = [call(at.governance, abi, "transferOwnership", [account])];
  if (minimumDeposit > 0n) {
    calls.unshift(call(at.governance, abi, "setSuperTokenMinimumDeposit", [at.host, at.usdcx, minimumDeposit]));
  }
  await deployer.execute("governance, its owner", calls);
}

/** What must be true of the deployed contracts: [what, found, wanted]. */
export async function superfluidFacts(at, chain, superfluid, { account, liquidationPeriod, patricianPeriod, minimumDeposit }) {
  const read = (name, file, functionName, args) => chain.read(at[name], superfluid.artifact(file).abi, functionName, args);
  const host = (...rest) => read("host", "superfluid/Superfluid.sol", ...rest);
  const governance = (...rest) => read("governance", "utils/TestGovernance.sol", ...rest);
  const beacon = (...rest) => read("poolBeacon", "upgradability/SuperfluidUpgradeableBeacon.sol", ...rest);
  const token = (...rest) => read("usdcx", "superfluid/SuperToken.sol", ...rest);
  const acl = (...rest) => read("simpleAcl", "utils/SimpleACL.sol", ...rest);
  const everyToken = zeroAddress;
  return Promise.all([
    ["host's governance", host("getGovernance"), at.governance],
    ["host may be upgraded", host("NON_UPGRADABLE_DEPLOYMENT").then((never) => !never), false],
    ["host's CFA", host("getAgreementClass", [CFA]), at.cfa],
    ["host's GDA", host("getAgreementClass", [GDA]), at.gda],
    ["host's token factory", host("getSuperTokenFactory"), at.superTokenFactory],
    ["governance's owner", governance("owner"), account],
    ["liquidation and patrician period", governance("getPPPConfig", [at.host, at.usdcx]).then(String), `${liquidationPeriod},${patricianPeriod}`],
    ["minimum deposit", governance("getSuperTokenMinimumDeposit", [at.host, at.usdcx]), minimumDeposit],
    ["reward account", governance("getRewardAddress", [at.host, at.usdcx]), account],
    ["GDA forwarder is trusted", governance("isTrustedForwarder", [at.host, everyToken, at.gdaForwarder]), true],
    ["CFA forwarder is trusted", governance("isTrustedForwarder", [at.host, everyToken, at.cfaForwarder]), true],
    ["pool beacon's logic", beacon("implementation"), at.poolLogic],
    ["pool beacon's owner", beacon("owner"), at.host],
    ["role admin of pool connections", acl("getRoleAdmin", [ACL_ROLE]), ACL_ADMIN],
    ["GDA grants pool connections", acl("hasRole", [ACL_ADMIN, at.gda]), true],
    ["USDCx's logic", token("getCodeAddress"), at.superTokenLogic],
    ["USDCx's host", token("getHost"), at.host],
    ["USDCx's underlying token", token("getUnderlyingToken"), at.usdc],
    ["USDCx's admin", token("getAdmin"), zeroAddress],
  ].map(async ([what, found, wanted]) => [what, await found, wanted]));
}
