defmodule Barytherium.Network.Outbox do
  @moduledoc false
  # Writes that wait. A batch of them is encoded as soon as it is full. Encoded frames are binaries
  # outside the heap of the process, so its garbage collections do not get longer when many wait.

  alias Barytherium.Frame
  alias Barytherium.Frame.Outgoing

  # The cost of writes that are encoded and sent at once. This is large enough to make the cost of
  # the calls small, and small enough to be encoded in 0.1 ms.
  @batch 64 * 1024

  # The latest write of the batch comes first. `requested` is the part of the bytes whose callers wait.
  defstruct framing: :stream,
            batch: [],
            batch_cost: 0,
            batch_requested: 0,
            encoded: :queue.new(),
            bytes: 0,
            requested: 0

  @typedoc "A caller that waits, or a process that wants to know what is not written."
  @type from :: GenServer.from() | {:tag | :report, pid(), term()}

  @typedoc "Prepared frames, their cost, and the caller that waits until they are written."
  @type write :: {[Frame.t()], non_neg_integer(), nil | from()}

  @typedoc """
  An encoded batch: its data and their size, how much of that was requested, its number of frames, and who
  waits for it.
  """
  @type encoded :: %{
          data: iodata(),
          bytes: non_neg_integer(),
          requested: non_neg_integer(),
          frames: non_neg_integer(),
          froms: [from()]
        }

  @typedoc "A write that cannot be encoded, the frame and the header, and why."
  @type refused :: {write(), Frame.t(), reason :: atom(), header :: non_neg_integer()}

  @type t :: %__MODULE__{
          framing: Barytherium.Native.framing(),
          batch: [write()],
          batch_cost: non_neg_integer(),
          batch_requested: non_neg_integer(),
          encoded: :queue.queue(encoded()),
          bytes: non_neg_integer(),
          requested: non_neg_integer()
        }

  @doc "Bytes of encoded frames that wait, plus the cost of the frames not yet encoded."
  @spec bytes(t()) :: non_neg_integer()
  def bytes(outbox), do: outbox.bytes + outbox.batch_cost

  @doc "Adds a write. `dialect` is the one to encode it for."
  @spec put(t(), write(), Frame.dialect()) :: {t(), [refused()]}
  def put(outbox, {_frames, cost, from} = write, dialect) do
    outbox = %{outbox | batch: [write | outbox.batch], batch_cost: outbox.batch_cost + cost}
    outbox = if from, do: request(cost, outbox), else: outbox
    if outbox.batch_cost < @batch, do: {outbox, []}, else: encode(outbox, dialect)
  end

  defp request(cost, outbox) do
    batch_requested = outbox.batch_requested + cost
    %{outbox | batch_requested: batch_requested, requested: outbox.requested + cost}
  end

  @doc "Takes out what is to be sent next."
  @spec take(t(), Frame.dialect()) :: {:empty | encoded(), t(), [refused()]}
  def take(outbox, dialect) do
    {outbox, refused} =
      if :queue.is_empty(outbox.encoded), do: encode(outbox, dialect), else: {outbox, []}

    case :queue.out(outbox.encoded) do
      {:empty, _queue} ->
        {:empty, outbox, refused}

      {{:value, encoded}, queue} ->
        outbox = %{outbox | encoded: queue, requested: outbox.requested - encoded.requested}
        {encoded, %{outbox | bytes: outbox.bytes - encoded.bytes}, refused}
    end
  end

  @doc "The callers that wait for any of the writes."
  @spec froms(t()) :: [from()]
  def froms(outbox) do
    encoded = Enum.flat_map(:queue.to_list(outbox.encoded), & &1.froms)
    encoded ++ froms_of(Enum.reverse(outbox.batch))
  end

  defp froms_of(writes), do: for({_frames, _cost, from} <- writes, from, do: from)

  defp encode(%{batch: []} = outbox, _dialect), do: {outbox, []}

  defp encode(outbox, dialect) do
    %{batch: batch, batch_cost: cost, batch_requested: requested} = outbox
    how = {dialect, outbox.framing}
    {writes, data, refused} = batch |> Enum.reverse() |> encode(cost, how)

    bytes = IO.iodata_length(data)
    # The size of an encoded frame is not its cost.
    encoded_requested = if cost > 0, do: div(bytes * requested, cost), else: 0

    encoded = %{
      data: data,
      bytes: bytes,
      requested: encoded_requested,
      frames: Enum.reduce(writes, 0, fn {frames, _cost, _from}, sum -> sum + length(frames) end),
      froms: froms_of(writes)
    }

    {%{
       outbox
       | batch: [],
         batch_cost: 0,
         batch_requested: 0,
         encoded: if(writes == [], do: outbox.encoded, else: :queue.in(encoded, outbox.encoded)),
         bytes: outbox.bytes + bytes,
         requested: outbox.requested - requested + encoded_requested
     }, refused}
  end

  defp encode(writes, cost, {dialect, framing} = how) do
    frames = Enum.flat_map(writes, fn {frames, _cost, _from} -> frames end)

    case Outgoing.encode(frames, cost, dialect, framing) do
      {:ok, data} ->
        {writes, data, []}

      # The frames before this one can be encoded.
      {:error, {index, reason, header}} ->
        {before, [write | others]} = split(writes, index)
        {^before, data, []} = encode(before, cost, how)
        {others, more, refused} = encode(others, cost, how)
        refusal = {write, Enum.at(frames, index), reason, header}
        {before ++ others, [data | more], [refusal | refused]}
    end
  end

  # Splits before the write that contains the frame at `index`.
  defp split([{frames, _cost, _from} = write | writes], index) when index >= length(frames) do
    {before, others} = split(writes, index - length(frames))
    {[write | before], others}
  end

  defp split(writes, _index), do: {[], writes}
end
