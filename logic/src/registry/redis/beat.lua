-- Renews the lease of one logic process and says who else has one.
--
-- Leases are counted on a clock of the fleet's own. It stands still while nobody can renew: a Redis
-- that was stopped for a minute must not find every lease but the first caller's run out.
--
-- KEYS    1 fleet (hash): the clock, when it was looked at last, of each owner the end of its lease
-- ARGV    1 owner, 2 lease (ms; 0: it leaves), 3 how far the clock moves in one step at most (ms),
--         4 how long an owner is remembered after its lease (ms)
-- returns {whether this owner's lease had held until now, owner, what is left of its lease (ms; ended:
--         how long ago, as a negative number or 0), …}
local fleet, owner, lease = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local clock = tonumber(redis.call('HGET', fleet, 'clock') or '0')
local step = now - tonumber(redis.call('HGET', fleet, 'at') or now)
clock = clock + math.min(math.max(step, 0), tonumber(ARGV[3]))

local ends = tonumber(redis.call('HGET', fleet, owner) or '-1')
redis.call('HSET', fleet, 'clock', string.format('%.0f', clock), 'at', string.format('%.0f', now),
  owner, string.format('%.0f', clock + lease))

local reply = { (ends > clock) and 1 or 0 }
local all = redis.call('HGETALL', fleet)
for at = 1, #all, 2 do
  if all[at] ~= 'clock' and all[at] ~= 'at' then
    local left = tonumber(all[at + 1]) - clock
    if left < -tonumber(ARGV[4]) then
      redis.call('HDEL', fleet, all[at])
    else
      reply[#reply + 1] = all[at]
      reply[#reply + 1] = left
    end
  end
end
return reply
