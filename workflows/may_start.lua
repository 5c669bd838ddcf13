-- Whether a step that is about to begin may. Stands after ending.lua.
--   KEYS[1]  the run it belongs to    KEYS[2]  the run that has its own id
--   ARGV[1]  step id, or '' when it is none    ARGV[2]  '1' when it builds the canvas of run KEYS[2]    ARGV[3]  the facts
--   ARGV[4]  the step that has replaced itself by a canvas of which this one is a part, or ''
-- Returns nothing; or 'withdrawn': its run was cancelled, or ended before the step began.
local function ended_badly(run)
    local state = redis.call('HGET', run, 'state')
    return state == 'CANCELLED' or (state == 'FAILED' and ARGV[2] == '1')
end

local facts, steps = cjson.decode(ARGV[3]), KEYS[1] .. ':steps'
local state, record = parsed(ARGV[1] ~= '' and redis.call('HGET', steps, ARGV[1]) or nil)
if state == 'CANCELLED' then return 'withdrawn' end
local run_state = redis.call('HGET', KEYS[1], 'state')
local planned = state == 'WAITING' and (cjson.decode(record).place or '') ~= ''
local too_late = run_state == 'FAILED' and (planned or (ARGV[4] ~= '' and state == 'WAITING'))
if run_state == 'CANCELLED' or too_late or ended_badly(KEYS[2]) then
    end_stood_for(facts, KEYS[1], ARGV[4], 'CANCELLED')
    if state == 'RUNNING' or planned then -- with a worker that has died, or put aside after its run had ended
        redis.call('HSET', steps, ARGV[1], 'CANCELLED ' .. record)
    end
    if ARGV[1] ~= '' then leave_result(facts, ARGV[1], facts.revoked) end
    return 'withdrawn'
end
return nil
