-- Every built-in policy keeps the contract.

local contract = require "scan.contract"
local world = require "scan.world"

-- What the contract has to know of some.
local OPTIONS = {
  clock = { shared_state = true },
  default = { shared_state = true },
  forever = { endless = true },
}

for _, policy in ipairs (world.list ()) do
  contract (policy.name, OPTIONS[policy.name])
end
