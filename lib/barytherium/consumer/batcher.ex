defmodule Barytherium.Consumer.Batcher do
  @moduledoc false
  # Collects messages for `handle_batch/2`, with the options `:batch_size` and `:batch_timeout`: until there are so many,
  # or so long after the first of them. A batch is of one connection.

  alias Barytherium.Frame

  @enforce_keys [:size, :timeout]
  # The messages, the latest first, with the sender of their connection and when the first of them was read.
  defstruct [:size, :timeout, messages: [], count: 0, from: nil, timer: nil]

  @type t :: %__MODULE__{
          size: pos_integer(),
          timeout: non_neg_integer(),
          messages: [Frame.t()],
          count: non_neg_integer(),
          from: nil | {pid(), non_neg_integer()},
          timer: nil | reference()
        }

  @type batch :: {[Frame.t(), ...], sender :: pid(), read_at :: non_neg_integer()}

  @spec new(map()) :: nil | t()
  def new(%{batch_size: nil}), do: nil

  def new(%{batch_size: size, batch_timeout: timeout}),
    do: %__MODULE__{size: size, timeout: timeout}

  @doc "Adds messages. Returns the batches that are full."
  @spec add(t(), [Frame.t()], pid(), non_neg_integer()) :: {[batch()], t()}
  def add(%__MODULE__{from: {other, _read_at}} = batcher, messages, sender, read_at)
      when other != sender do
    {batches, batcher} = take(batcher)
    {full, batcher} = add(batcher, messages, sender, read_at)
    {batches ++ full, batcher}
  end

  def add(batcher, [], _sender, _read_at), do: {[], batcher}

  def add(%__MODULE__{size: size, count: count} = batcher, messages, sender, read_at) do
    {now, later} = Enum.split(messages, size - count)

    batcher = %{
      batcher
      | messages: Enum.reverse(now, batcher.messages),
        count: count + length(now),
        from: batcher.from || {sender, read_at},
        timer: batcher.timer || :erlang.start_timer(batcher.timeout, self(), :batch)
    }

    if batcher.count == size do
      {batch, batcher} = take(batcher)
      {more, batcher} = add(batcher, later, sender, read_at)
      {batch ++ more, batcher}
    else
      {[], batcher}
    end
  end

  @doc "Takes what there is: one batch, or none."
  @spec take(t()) :: {[batch()], t()}
  def take(%__MODULE__{messages: []} = batcher), do: {[], batcher}

  def take(%__MODULE__{from: {sender, read_at}} = batcher) do
    # Its message may be in the mailbox already, and is of no use then.
    :erlang.cancel_timer(batcher.timer)
    batch = {Enum.reverse(batcher.messages), sender, read_at}
    {[batch], %{batcher | messages: [], count: 0, from: nil, timer: nil}}
  end
end
