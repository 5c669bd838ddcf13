-- Add to a run's stream what one of its steps has said, once, and keep how far that step has come.
--   KEYS[1]  the run      KEYS[2]  its stream       KEYS[3]  what its steps have told: step → JSON; `#bytes`, `#dropped`
--   KEYS[4]  the messages that the step's worker has in flight
--   ARGV[1]  the number of the step's message there, or '' where there is none to check
--   ARGV[2]  the step     ARGV[3]  its task    ARGV[4]  which attempt it takes itself for    ARGV[5]  what tells this attempt
--            from every other               ARGV[6]  the number of what is said: the first is 1, sent again it is the same
--   ARGV[7]  a JSON list of what is said, or ''     ARGV[8]  the fraction that is done, or ''     ARGV[9]  a message with it
--   ARGV[10] now, seconds since 1970       ARGV[11] the most bytes the stream may take: its oldest entries go
-- Returns 'told'; or, when nothing has been done, 'superseded' (another worker has the step by now), 'unknown' (there is no
-- such run) or 'ended' (the run has: nothing comes after its end).
if ARGV[1] ~= '' and redis.call('HEXISTS', KEYS[4], ARGV[1]) == 0 then return 'superseded' end
local ttl_s = redis.call('TTL', KEYS[1])
if ttl_s == -2 then return 'unknown' end
if redis.call('HEXISTS', KEYS[1], 'ended_at') == 1 then return 'ended' end

local known = redis.call('HGET', KEYS[3], ARGV[2])
local told = known and cjson.decode(known)
if not told or told.token ~= ARGV[5] then
    -- Attempts that ended without having counted (evicted, or killed as they began) get their own number here.
    local attempt = math.max(tonumber(ARGV[4]), told and told.attempt + 1 or 1)
    told = {token = ARGV[5], attempt = attempt, number = 0, top = told and told.top or 0}
elseif tonumber(ARGV[6]) <= told.number then
    return 'told'
end
told.number = tonumber(ARGV[6])
if ARGV[8] ~= '' then
    told.fraction, told.message, told.at = tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10])
    told.top = math.max(told.top, told.fraction)
end
redis.call('HSET', KEYS[3], ARGV[2], cjson.encode(told))

local function size_of(fields)
    local bytes = 100 -- about what an entry takes beside its fields
    for _, field in ipairs(fields) do bytes = bytes + #field end
    return bytes
end

if ARGV[7] ~= '' then
    local fields = {'step', ARGV[2], 'task', ARGV[3], 'attempt', tostring(told.attempt), 'items', ARGV[7]}
    redis.call('XADD', KEYS[2], '*', unpack(fields))
    local bytes = redis.call('HINCRBY', KEYS[3], '#bytes', size_of(fields))
    while bytes > tonumber(ARGV[11]) and redis.call('XLEN', KEYS[2]) > 1 do
        local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
        redis.call('XDEL', KEYS[2], oldest[1])
        bytes = redis.call('HINCRBY', KEYS[3], '#bytes', -size_of(oldest[2]))
        redis.call('HINCRBY', KEYS[3], '#dropped', 1)
    end
end
if ttl_s > 0 then
    redis.call('EXPIRE', KEYS[2], ttl_s)
    redis.call('EXPIRE', KEYS[3], ttl_s)
end
return 'told'
