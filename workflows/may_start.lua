-- Whether a step that is about to begin may. Stands after ending.lua.
--   KEYS[1]  the run it belongs to    KEYS[2]  the run that has its own id
--   KEYS[3]  the run of whose building its message is a part
--   ARGV[1]  step id, or '' when it is none    ARGV[2]  '1' when it builds the canvas of run KEYS[2]    ARGV[3]  the facts
--   ARGV[4]  the step that has replaced itself by a canvas of which this one is a part, or ''
--   ARGV[5]  how often that run had been resumed when its message was made; '' where nothing has planned it
-- Returns nothing; or 'withdrawn': its run was cancelled, or ended before the step began, or was built again since.
-- A run that was resumed sends all its messages again: an older one would run its step beside the newer one's.
if ARGV[5] ~= '' and tonumber(ARGV[5]) < tonumber(redis.call('HGET', KEYS[3], 'replay') or 0) then return 'withdrawn' end

local function ended_badly(run)
    local state = redis.call('HGET', run, 'state')
    return state == 'CANCELLED' or (state == 'FAILED' and ARGV[2] == '1')
end

-- A run that was to be a step of it, and was recorded when it had ended already.
local function end_own_run(facts)
    local own = ARGV[2] == '1' and redis.call('HGET', KEYS[2], 'state')
    if own == 'QUEUED' or own == 'RUNNING' then end_run(facts, KEYS[2], 'CANCELLED') end
end

local facts, steps = cjson.decode(ARGV[3]), KEYS[1] .. ':steps'
local state, record = parsed(ARGV[1] ~= '' and redis.call('HGET', steps, ARGV[1]) or nil)
if state == 'CANCELLED' then
    end_own_run(facts)
    return 'withdrawn'
end
local run_state = redis.call('HGET', KEYS[1], 'state')
local planned = (state == 'WAITING' or state == 'RETRYING') and (cjson.decode(record).place or '') ~= ''
local too_late = run_state == 'FAILED' and (planned or (ARGV[4] ~= '' and state == 'WAITING'))
if run_state == 'CANCELLED' or too_late or ended_badly(KEYS[2]) then
    end_stood_for(facts, KEYS[1], ARGV[4], 'CANCELLED')
    if state == 'RUNNING' or planned then -- with a worker that has died, or put aside after its run had ended
        redis.call('HSET', steps, ARGV[1], 'CANCELLED ' .. record)
    end
    if ARGV[1] ~= '' then leave_result(facts, ARGV[1], facts.revoked) end
    end_own_run(facts)
    return 'withdrawn'
end
return nil
