-- Health of Channels, NotificationTemplates, RecipientGroups and Schedules, for Argo CD: the same for all four kinds.
-- Degraded is what only an edit of this resource cures; what waits for another is progressing, so that the order of
-- applying does not matter. Providers that fail and letters that are dead are no matter of health: metrics tell of them.
local function condition(kind)
  if obj.status ~= nil and obj.status.conditions ~= nil then
    for _, found in ipairs(obj.status.conditions) do
      if found.type == kind then
        return found
      end
    end
  end
  return nil
end

local function is_true(found)
  return found ~= nil and found.status == "True"
end

local annotations = obj.metadata.annotations
if annotations ~= nil and annotations["herald.dev/reconcile"] == "disabled" then
  return { status = "Suspended", message = "The operator leaves it alone: annotation herald.dev/reconcile" }
end

-- What the status says of an earlier generation says nothing of this one.
local observed = obj.status ~= nil and obj.status.observedGeneration or nil
if observed == nil or observed ~= obj.metadata.generation then
  return { status = "Progressing", message = "Waiting for the operator" }
end

local stalled = condition("Stalled")
if is_true(stalled) then
  return { status = "Degraded", message = stalled.message }
end

if obj.spec ~= nil and obj.spec.suspend == true then
  return { status = "Suspended", message = "spec.suspend" }
end

local ready = condition("Ready")
if is_true(ready) then
  return { status = "Healthy", message = ready.message }
end

local reconciling = condition("Reconciling")
if is_true(reconciling) then
  return { status = "Progressing", message = reconciling.message }
end
if ready ~= nil then
  return { status = "Progressing", message = ready.message }
end
return { status = "Progressing", message = "Waiting for the operator" }
