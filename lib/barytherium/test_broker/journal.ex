defmodule Barytherium.TestBroker.Journal do
  @moduledoc false
  # What clients have published and acknowledged, as a value, for the assertions. Each entry has a number in its
  # destination, and can be taken once.

  alias Barytherium.Frame

  # Entries that are remembered of each kind and destination: enough for a test, and nothing to a benchmark that sends for
  # hours.
  @limit 10_000

  @type kind :: :published | :acked
  @type entry :: {number :: pos_integer(), Frame.t()}
  @typep key :: {kind(), destination :: binary()}
  @type t :: %{key() => {:queue.queue(entry()), last :: non_neg_integer()}}

  @spec note(t(), kind(), [Frame.t()]) :: t()
  def note(journal, kind, frames), do: Enum.reduce(frames, journal, &note_one(&2, kind, &1))

  @doc "The entries with a number above `seen`, the oldest first."
  @spec since(t(), key(), non_neg_integer()) :: [entry()]
  def since(journal, key, seen) do
    case journal do
      %{^key => {entries, last}} when last > seen ->
        for {number, _frame} = entry <- :queue.to_list(entries), number > seen, do: entry

      _nothing_new ->
        []
    end
  end

  @doc "Takes an entry away, and says whether it was there."
  @spec take(t(), key(), pos_integer()) :: {boolean(), t()}
  def take(journal, key, number) do
    {entries, last} = Map.fetch!(journal, key)
    rest = :queue.filter(fn {other, _frame} -> other != number end, entries)
    {:queue.len(rest) < :queue.len(entries), Map.put(journal, key, {rest, last})}
  end

  defp note_one(journal, kind, frame) do
    key = {kind, Frame.header(frame, "destination")}
    {entries, last} = Map.get(journal, key, {:queue.new(), 0})
    entries = :queue.in({last + 1, frame}, entries)
    Map.put(journal, key, {limit(entries, last + 1), last + 1})
  end

  # A length takes as long as the queue is, so it is looked at now and then only.
  defp limit(entries, number) when rem(number, @limit) == 0 do
    case :queue.len(entries) - @limit do
      surplus when surplus > 0 -> elem(:queue.split(surplus, entries), 1)
      _enough -> entries
    end
  end

  defp limit(entries, _number), do: entries
end
