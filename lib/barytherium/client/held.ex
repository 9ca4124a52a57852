defmodule Barytherium.Client.Held do
  @moduledoc false
  # Lists of messages for subscribers that are behind.

  # A subscriber with this many messages in its mailbox is behind. Each holds at most 256 frames.
  @high_water_mark 128

  # Lists that are held at the most, for all subscribers. Below that, those of others and receipts pass them.
  @most_lists 32

  # The messages in a mailbox may be others, which its process never takes. So after this many
  # milliseconds one list is sent nevertheless. The wait doubles each time, as long as the subscriber
  # stays behind.
  @first_trial 1_000
  @longest_trial 64_000

  # For each subscriber the lists, the earliest first, as `{key, messages}`.
  defstruct subscribers: %{}, count: 0

  @type key :: {atom(), binary()}
  @type t :: %__MODULE__{count: non_neg_integer(), subscribers: %{pid() => map()}}

  @spec none?(t()) :: boolean()
  def none?(held), do: held.subscribers == %{}

  @spec full?(t()) :: boolean()
  def full?(held), do: held.count >= @most_lists

  @doc "Whether something is held for `pid`. What comes later must not overtake it."
  @spec any?(t(), pid()) :: boolean()
  def any?(held, pid), do: is_map_key(held.subscribers, pid)

  @spec behind?(pid()) :: boolean()
  def behind?(pid) when node(pid) == node() do
    case Process.info(pid, :message_queue_len) do
      {:message_queue_len, length} -> length >= @high_water_mark
      nil -> false
    end
  end

  def behind?(_remote), do: false

  @spec add(t(), pid(), key(), [Barytherium.Frame.t()]) :: t()
  def add(held, pid, key, messages) do
    new = %{lists: :queue.new(), since: System.monotonic_time(:millisecond), trial: @first_trial}
    entry = Map.get(held.subscribers, pid, new)
    entry = %{entry | lists: :queue.in({key, messages}, entry.lists)}
    %{held | subscribers: Map.put(held.subscribers, pid, entry), count: held.count + 1}
  end

  @doc "What can be sent now, as `{pid, messages}`. `now` is in milliseconds."
  @spec release(t(), integer()) :: {[{pid(), [Barytherium.Frame.t()]}], t()}
  def release(held, now) do
    Enum.reduce(held.subscribers, {[], held}, fn {pid, entry}, {lists, held} ->
      case released(pid, entry, now) do
        {:all, more} -> {lists ++ more, drop(held, pid)}
        {:one, more, entry} -> {lists ++ more, put(held, pid, entry, length(more))}
        :none -> {lists, held}
      end
    end)
  end

  defp released(pid, entry, now) do
    cond do
      not behind?(pid) -> {:all, messages(pid, entry)}
      now - entry.since < entry.trial -> :none
      true -> trial(pid, entry, now)
    end
  end

  defp trial(pid, entry, now) do
    entry = %{entry | since: now, trial: min(2 * entry.trial, @longest_trial)}

    case :queue.out(entry.lists) do
      {{:value, {_key, messages}}, lists} -> {:one, [{pid, messages}], %{entry | lists: lists}}
      # It is still behind, so the entry stays, and with it the wait.
      {:empty, _lists} -> {:one, [], entry}
    end
  end

  @doc "Everything, at once."
  @spec release_all(t()) :: {[{pid(), [Barytherium.Frame.t()]}], t()}
  def release_all(held),
    do:
      {Enum.flat_map(held.subscribers, fn {pid, entry} -> messages(pid, entry) end),
       %__MODULE__{}}

  @doc "Takes out what is held with this key."
  @spec take(t(), key()) :: {[{pid(), [Barytherium.Frame.t()]}], t()}
  def take(held, key) do
    taken =
      for {pid, entry} <- held.subscribers,
          {^key, messages} <- :queue.to_list(entry.lists),
          do: {pid, messages}

    {taken, keep(held, &(&1 != key))}
  end

  @doc "Keeps only what has such a key."
  @spec keep(t(), (key() -> boolean())) :: t()
  def keep(held, condition) do
    subscribers =
      for {pid, entry} <- held.subscribers,
          lists = :queue.filter(fn {key, _messages} -> condition.(key) end, entry.lists),
          not :queue.is_empty(lists),
          into: %{},
          do: {pid, %{entry | lists: lists}}

    counts = for {_pid, entry} <- subscribers, do: :queue.len(entry.lists)
    %__MODULE__{subscribers: subscribers, count: Enum.sum(counts)}
  end

  defp messages(pid, entry),
    do: for({_key, messages} <- :queue.to_list(entry.lists), do: {pid, messages})

  defp drop(held, pid) do
    {entry, subscribers} = Map.pop!(held.subscribers, pid)
    %{held | subscribers: subscribers, count: held.count - :queue.len(entry.lists)}
  end

  defp put(held, pid, entry, sent),
    do: %{held | subscribers: Map.put(held.subscribers, pid, entry), count: held.count - sent}
end
