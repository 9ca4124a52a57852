defmodule Barytherium.TestBroker.Journal do
  @moduledoc false
  # What clients have published and acknowledged, as a value, for the assertions. Each entry has a number, and can be taken
  # once.

  alias Barytherium.Frame

  # Entries of each kind that are remembered: enough for a test, and nothing to a benchmark that sends for hours.
  @limit 10_000

  @type kind :: :published | :acked
  @type entry :: {number :: pos_integer(), Frame.t()}

  defstruct published: :queue.new(), acked: :queue.new(), next: 1

  @type t :: %__MODULE__{}

  @spec note(t(), kind(), [Frame.t()]) :: t()
  def note(journal, kind, frames), do: Enum.reduce(frames, journal, &note_one(&2, kind, &1))

  @doc "The entries for `destination` with a number above `seen`, the oldest first."
  @spec since(t(), kind(), binary(), non_neg_integer()) :: [entry()]
  def since(%{next: next}, _kind, _destination, seen) when seen + 1 == next, do: []

  def since(journal, kind, destination, seen) do
    for {number, frame} <- :queue.to_list(Map.fetch!(journal, kind)),
        number > seen,
        Frame.header(frame, "destination") == destination,
        do: {number, frame}
  end

  @doc "Takes an entry away, and says whether it was there."
  @spec take(t(), kind(), pos_integer()) :: {boolean(), t()}
  def take(journal, kind, number) do
    entries = Map.fetch!(journal, kind)
    rest = :queue.filter(fn {other, _frame} -> other != number end, entries)
    {:queue.len(rest) < :queue.len(entries), Map.put(journal, kind, rest)}
  end

  defp note_one(journal, kind, frame) do
    entries = :queue.in({journal.next, frame}, Map.fetch!(journal, kind))
    %{Map.put(journal, kind, limit(entries, journal.next)) | next: journal.next + 1}
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
