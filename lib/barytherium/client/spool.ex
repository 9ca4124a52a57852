defmodule Barytherium.Client.Spool do
  @moduledoc false
  # What a client has accepted of `Barytherium.Client.publish_async/4`, and what is not settled: confirmed by the broker,
  # or failed. `Barytherium.Client.Publishing` writes it.
  #
  #   accepted ──► queue ──chunk──► written ──receipts──► settled ──► the caller gets the result
  #                  ▲                 │
  #                  └─────────────────┘ the connection has ended, and `keep` is not :none
  #
  # A publication is what one call has given: one message, or several. Publications are numbered as they are accepted,
  # and are written in this order. `keep` is :none, :memory or :disk. With :disk all are in the files of `store`, and in
  # memory are those from `low` to `unread`.

  alias Barytherium.Client.Spool.{Blocked, Store}
  alias Barytherium.{Error, Frame}

  # Bytes that are written together, so that others do not wait behind more.
  @chunk 256 * 1024

  # By so much is narrowed down what was refused. With less there are more connections until it is found, each after a
  # longer wait; with more there are more round trips on each.
  @narrowing 16

  # Numbers that may stay in `order` after they are settled.
  @most_settled 1_000

  @enforce_keys [:keep, :limit]
  defstruct @enforce_keys ++
              [
                store: nil,
                # Whether it is known what is in the files.
                recovered?: true,
                # All before `low` are settled, of which the store was told of those before `told`. `unread` is the first one
                # that is not in memory. There are `count` in memory, whose numbers are in `order`, with some that are settled.
                low: 1,
                count: 0,
                order: :queue.new(),
                ordered: 0,
                told: 1,
                next: 1,
                unread: 1,
                reading?: false,
                # In memory: those that are to be written, those that were, and the bytes of both.
                queue: :queue.new(),
                written: %{},
                size: 0,
                # The numbers of those that the sender has, and perhaps not the socket.
                chunk: [],
                # `low` when this connection was made.
                began: 1,
                # Up to this number, so many frames are written together. Which one was refused alone, and how often. If
                # that was too often, nothing is written for a while, and `withheld` is the error.
                suspects: 0,
                together: 1,
                refused: {nil, 0},
                withheld: nil,
                # Calls whose publication the store has not written, and the bytes of these; calls that wait for room;
                # and calls that wait until everything is settled.
                storing: :queue.new(),
                storing_size: 0,
                blocked: %Blocked{},
                flushes: []
              ]

  @type t :: %__MODULE__{}

  @type sequence_number :: pos_integer()

  @typedoc """
  `frames` are those that are not confirmed, with their positions in the call. The first `sent` of them are on the
  connection. `failed` is the first error, and the positions of what has failed.
  """
  @type publication :: %{
          to: nil | {pid(), reference(), :one | :many},
          size: pos_integer(),
          frames: [{non_neg_integer(), Frame.t()}],
          sent: non_neg_integer(),
          failed: nil | {Error.t(), [non_neg_integer()]}
        }

  @doc "As the options of the client say."
  @spec new(map()) :: {:ok, t()} | {:error, {:spool, atom()}}
  def new(%{spool: nil} = settings), do: {:ok, in_memory(:none, settings)}
  def new(%{spool: :memory} = settings), do: {:ok, in_memory(:memory, settings)}

  def new(%{spool: directory} = settings) do
    case Store.start(directory) do
      {:ok, store} -> {:ok, %{in_memory(:disk, settings) | store: store, recovered?: false}}
      {:error, reason} -> {:error, {:spool, reason}}
    end
  end

  defp in_memory(keep, settings), do: %__MODULE__{keep: keep, limit: settings.publish_window}

  @doc "How many publications are not settled."
  @spec count(t()) :: non_neg_integer()
  def count(spool), do: spool.next - spool.unread + spool.count

  # One that is larger than the limit is let in alone.
  @doc "Whether there is room in memory for so many bytes."
  @spec room?(t(), pos_integer()) :: boolean()
  def room?(spool, size), do: spool.size + size <= spool.limit or spool.size == 0

  @doc "Adds a publication that is new, and that is in memory. It has the number `next`."
  @spec put(t(), Store.publication()) :: t()
  def put(%{next: next} = spool, publication),
    do: put(%{spool | next: next + 1, unread: next + 1}, next, publication)

  @doc "Adds one that has this number."
  @spec put(t(), sequence_number(), Store.publication()) :: t()
  def put(spool, number, {to, size, frames}) do
    publication = %{to: to, size: size, frames: frames, sent: 0, failed: nil}

    with_low(%{
      spool
      | queue: :queue.in({number, publication}, spool.queue),
        order: :queue.in(number, spool.order),
        ordered: spool.ordered + 1,
        count: spool.count + 1,
        size: spool.size + size
    })
  end

  # What is settled is taken out of `order` when it comes first, so that each number costs little.
  defp with_low(%{order: order} = spool) do
    case :queue.peek(order) do
      :empty ->
        %{spool | low: spool.unread}

      {:value, number} ->
        if open?(number, spool),
          do: %{spool | low: number},
          else: with_low(%{spool | order: :queue.drop(order), ordered: spool.ordered - 1})
    end
  end

  # Of the first one in `order`: the queue has no number before that.
  defp open?(number, %{written: written, queue: queue}) do
    is_map_key(written, number) or
      match?({:value, {^number, _publication}}, :queue.peek(queue))
  end

  @doc "Adds those that were read from the files, which have no others before `unread`."
  @spec put_read(t(), [{sequence_number(), Store.publication()}], sequence_number()) :: t()
  def put_read(spool, publications, unread) do
    spool = with_low(%{spool | unread: unread, reading?: false})
    Enum.reduce(publications, spool, fn {number, one}, spool -> put(spool, number, one) end)
  end

  @doc "Takes what is written next. Suspects are on the connection without anything else of the spool."
  @spec take_chunk(t()) :: {[{sequence_number(), publication()}], t()}
  def take_chunk(%{low: low, suspects: suspects, written: written} = spool)
      when low <= suspects and written != %{},
      do: {[], spool}

  def take_chunk(%{low: low, suspects: suspects} = spool) when low <= suspects,
    do: take_suspects(spool.queue, spool.together, [], spool)

  def take_chunk(spool) do
    {chunk, queue} = take(spool.queue, 0, [])
    taken(chunk, queue, spool)
  end

  defp take_suspects(queue, left, chunk, %{suspects: suspects} = spool) do
    case :queue.peek(queue) do
      {:value, {number, %{frames: frames} = publication}} when number <= suspects and left > 0 ->
        sent = min(length(frames), left)
        chunk = [{number, %{publication | sent: sent}} | chunk]
        take_suspects(:queue.drop(queue), left - sent, chunk, spool)

      _no_more ->
        taken(Enum.reverse(chunk), queue, spool)
    end
  end

  defp take(queue, bytes, chunk) do
    with {:value, {number, %{size: size, frames: frames} = publication}} <- :queue.peek(queue),
         true <- bytes == 0 or bytes + size <= @chunk do
      entry = {number, %{publication | sent: length(frames)}}
      take(:queue.drop(queue), bytes + size, [entry | chunk])
    else
      _no_more -> {Enum.reverse(chunk), queue}
    end
  end

  defp taken(chunk, queue, spool) do
    written = Enum.into(chunk, spool.written)
    numbers = for {number, _publication} <- chunk, do: number
    {chunk, %{spool | queue: queue, written: written, chunk: numbers}}
  end

  @doc "One of these publications holds what was refused: fewer frames are written together until they are settled."
  @spec suspect(t(), [sequence_number()]) :: t()
  def suspect(spool, numbers) do
    sent = for number <- numbers, reduce: 0, do: (sum -> sum + spool.written[number].sent)
    %{spool | suspects: Enum.max(numbers), together: max(div(sent, @narrowing), 1)}
  end

  @doc "What was written and is not on a connection any more comes before everything else."
  @spec requeue(t()) :: t()
  def requeue(spool) do
    {back, written} = Enum.split_with(spool.written, fn {_number, %{sent: sent}} -> sent == 0 end)
    queue = back |> Enum.sort() |> :queue.from_list() |> :queue.join(spool.queue)
    %{spool | queue: queue, written: Map.new(written)}
  end

  @doc "Of a publication, these are left, and none of them is on a connection: those at these places, and those not sent."
  @spec left(t(), sequence_number(), [non_neg_integer()]) :: t()
  def left(spool, number, places) do
    places = MapSet.new(places)

    update_in(spool.written[number], fn publication ->
      {sent, unsent} = Enum.split(publication.frames, publication.sent)
      sent = for {frame, place} <- Enum.with_index(sent), place in places, do: frame
      %{publication | frames: sent ++ unsent, sent: 0}
    end)
  end

  @doc "What was sent of it is confirmed, or has failed."
  @spec confirm(t(), sequence_number()) :: t()
  def confirm(spool, number) do
    %{frames: frames, sent: sent} = publication = spool.written[number]

    case Enum.drop(frames, sent) do
      [] ->
        settle(spool, number, publication)

      frames ->
        requeue(put_in(spool.written[number], %{publication | frames: frames, sent: 0}))
    end
  end

  @doc "Frames of a written publication have failed."
  @spec add_failure(t(), sequence_number(), [non_neg_integer()], Error.t()) :: t()
  def add_failure(spool, number, positions, error) do
    update_in(spool.written[number].failed, fn
      nil -> {error, positions}
      {first, before} -> {first, positions ++ before}
    end)
  end

  @doc "All that is left of a written publication has failed."
  @spec fail(t(), sequence_number(), Error.t()) :: t()
  def fail(spool, number, error) do
    positions = for {position, _frame} <- spool.written[number].frames, do: position
    spool = add_failure(spool, number, positions, error)
    settle(spool, number, spool.written[number])
  end

  @doc "All that is in memory has failed: what was written, and what was not."
  @spec fail_all(t(), Error.t(), Error.t()) :: t()
  def fail_all(spool, written, unwritten) do
    spool = Enum.reduce(Map.keys(spool.written), spool, &fail(&2, &1, written))
    queued = Map.new(:queue.to_list(spool.queue))
    spool = %{spool | queue: :queue.new(), written: queued}
    Enum.reduce(Map.keys(queued), spool, &fail(&2, &1, unwritten))
  end

  defp settle(spool, number, publication) do
    tell(publication)
    written = Map.delete(spool.written, number)
    size = spool.size - publication.size
    with_low(without_settled(%{spool | written: written, size: size, count: spool.count - 1}))
  end

  # Numbers behind one that is not settled would become more and more.
  defp without_settled(%{ordered: ordered, count: count} = spool)
       when ordered > 2 * count + @most_settled do
    queued = for {number, _publication} <- :queue.to_list(spool.queue), do: number
    numbers = Enum.sort(Map.keys(spool.written) ++ queued)
    %{spool | order: :queue.from_list(numbers), ordered: length(numbers)}
  end

  defp without_settled(spool), do: spool

  defp tell(%{to: nil}), do: :ok

  defp tell(%{to: {pid, reference, how}, failed: failed}) do
    message = {:barytherium, :published, {reference, result(how, failed)}}
    # The client does not wait for another node. One that is not connected is gone.
    if Process.send(pid, message, [:nosuspend, :noconnect]) == :nosuspend,
      do: spawn(fn -> send(pid, message) end)
  end

  defp result(_how, nil), do: :ok
  defp result(:one, {error, _positions}), do: {:error, error}
  defp result(:many, {error, positions}), do: {:error, error, Enum.sort(positions)}
end
