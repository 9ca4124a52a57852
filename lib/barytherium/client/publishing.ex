defmodule Barytherium.Client.Publishing do
  @moduledoc false
  # How `Barytherium.Client.publish_async/4` is accepted, written and answered. The functions run in the client, and take
  # and return its data, whose `spool` holds what is accepted.
  #
  # One chunk of it at a time is at the sender: a large one would be overtaken there by a small one.
  #
  # When the broker refuses something and does not say what, all that was written is suspect. On the next connection fewer
  # frames are written together, and fewer again when that is refused, until the suspects are settled. One that is refused
  # several times while it is the only one of them is put to the test: on the next connection it is withheld. If that
  # connection is refused, too, something else is the reason: an acknowledgement, or a message of `publish/4`. If it is
  # not, the message has failed.

  alias Barytherium.Client.{Events, Handlers, Requests, Routing, Session, Spool, State, Writing}
  alias Barytherium.Client.Spool.{Blocked, Store}
  alias Barytherium.{Error, Frame}

  # A broker that stops may end its connections with an ERROR, too.
  @refusals 3

  # Milliseconds for which a connection has to last without the message that is withheld.
  @test_time 500

  # Milliseconds for what is still to be written to files when the client ends.
  @stop_timeout 3_000

  @doc "Takes a publication. The caller gets `:ok` when it is accepted."
  @spec publish(Store.publication(), :gen_statem.from(), timeout(), atom(), State.t()) ::
          State.t()
  def publish({_to, size, _frames} = publication, from, timeout, state, %{spool: spool} = data) do
    cond do
      not accepts?(state, data) ->
        reply(from, {:error, :disconnected}, data)

      Blocked.empty?(spool.blocked) and room?(size, spool) ->
        publication |> accept(from, data) |> go_on()

      true ->
        put_in(data.spool.blocked, Blocked.put(spool.blocked, publication, from, timeout))
    end
  end

  defp accepts?(:closing, data), do: open?(data) and ready?(data)
  defp accepts?(:connecting, _data), do: true
  defp accepts?(_state, %{spool: %{keep: :none}} = data), do: ready?(data)
  defp accepts?(_state, _data), do: true

  # Whether there will be time for more. While a consumer handles what has arrived before it stops, its callbacks may
  # publish, and wait for that.
  defp open?(%{closing: closing, handlers: handlers}),
    do: closing == nil or Handlers.running?(handlers)

  # When its end is decided, nothing more is written on a connection.
  defp ready?(data), do: match?(%{connection: %{session: %Session{}, verdict: nil}}, data)

  defp room?(size, %{keep: :disk} = spool),
    do: spool.storing_size + size <= spool.limit or spool.storing_size == 0

  defp room?(size, spool), do: Spool.room?(spool, size)

  defp accept({_to, size, _frames} = publication, from, %{spool: %{keep: :disk} = spool} = data) do
    Store.append(spool.store, publication)
    storing = :queue.in({publication, from}, spool.storing)
    %{data | spool: %{spool | storing: storing, storing_size: spool.storing_size + size}}
  end

  defp accept(publication, from, data),
    do: reply(from, :ok, update_in(data.spool, &Spool.put(&1, publication)))

  @doc "Answers when everything that was accepted is settled."
  @spec flush(:gen_statem.from(), timeout(), State.t()) :: State.t()
  def flush(from, timeout, %{spool: spool} = data) do
    target = spool.next + :queue.len(spool.storing)
    timer = Process.send_after(self(), {:spool, {:flush_timeout, from}}, timeout)
    answer_flushes(put_in(data.spool.flushes, [{target, from, timer} | spool.flushes]))
  end

  @doc "Something has become of what the sender or the store was given, or a time is over."
  @spec event(term(), State.t()) :: State.t()
  def event({:written, sender}, %{connection: %{sender: sender}} = data),
    do: go_on(put_in(data.spool.chunk, []))

  # Nothing of the chunk was written. Which frame it is shows as with one that the broker refuses.
  def event(
        {:not_written, sender, :unescapable},
        %{connection: %{sender: sender, verdict: nil}} = data
      ) do
    %{chunk: chunk, written: written} = data.spool
    data = forget_requests(chunk, put_in(data.spool.chunk, []))

    case Map.take(written, chunk) |> Map.to_list() do
      [{number, %{sent: 1}}] ->
        go_on(confirm(number, refused(number, 0, :unescapable, data)))

      _several ->
        spool = Spool.suspect(data.spool, chunk)
        spool = Enum.reduce(chunk, spool, &put_in(&2.written[&1].sent, 0))
        go_on(%{data | spool: Spool.requeue(spool)})
    end
  end

  def event({:recovered, low, next}, %{spool: spool} = data) do
    flushes = for {target, from, timer} <- spool.flushes, do: {target + next - 1, from, timer}
    spool = %{spool | low: low, told: low, unread: low, next: next, flushes: flushes}
    go_on(%{data | spool: %{spool | recovered?: true}})
  end

  def event({:stored, count}, data), do: go_on(Enum.reduce(1..count, data, &stored/2))

  def event({:not_stored, count, reason}, data),
    do: go_on(Enum.reduce(1..count, data, fn _n, data -> not_stored(reason, data) end))

  # A client that closes leaves it in the files.
  def event({:read, publications, unread}, data) do
    if open?(data),
      do: go_on(update_in(data.spool, &Spool.put_read(&1, publications, unread))),
      else: put_in(data.spool.reading?, false)
  end

  def event({:test_over, sender}, %{connection: %{sender: sender, verdict: nil}} = data)
      when data.spool.withheld != nil do
    error = data.spool.withheld
    # Suspects come first, and this one alone.
    {[{number, _publication}], spool} = Spool.take_chunk(data.spool)
    spool = %{spool | chunk: [], withheld: nil, refused: {nil, 0}}
    go_on(confirm(number, refused(number, 0, error, %{data | spool: spool})))
  end

  def event({:no_room, number}, data), do: give_up(number, data)

  # Nobody would hear that it was accepted.
  def event({:gone, number}, data), do: give_up(number, data)

  def event({:flush_timeout, from}, data) do
    {late, flushes} = Enum.split_with(data.spool.flushes, &(elem(&1, 1) == from))
    for {_target, from, _timer} <- late, do: :gen_statem.reply(from, {:error, :timeout})
    put_in(data.spool.flushes, flushes)
  end

  # Strays, and what is about an earlier connection, or the end of this one, of which there will be a report.
  def event(_other, data), do: data

  defp give_up(number, data) do
    case Blocked.give_up(data.spool.blocked, number) do
      {_publication, from, blocked} ->
        # Others may have waited behind it.
        go_on(reply(from, {:error, :not_written}, put_in(data.spool.blocked, blocked)))

      nil ->
        data
    end
  end

  # What comes behind something that is only in the files has to be read, too.
  defp stored(_n, data) do
    {{_to, size, _frames} = publication, from, %{spool: spool} = data} = take_stored(data)
    in_memory? = open?(data) and spool.unread == spool.next and Spool.room?(spool, size)

    spool =
      if in_memory?, do: Spool.put(spool, publication), else: %{spool | next: spool.next + 1}

    reply(from, :ok, %{data | spool: spool})
  end

  # It would have got the number `next`, and those who wait for that number wait for one less.
  defp not_stored(reason, data) do
    {_publication, from, %{spool: %{next: next}} = data} = take_stored(data)

    flushes =
      for {target, from, timer} <- data.spool.flushes,
          do: {if(target > next, do: target - 1, else: target), from, timer}

    reply(from, {:error, reason}, put_in(data.spool.flushes, flushes))
  end

  defp take_stored(%{spool: spool} = data) do
    {{:value, {{_to, size, _frames} = publication, from}}, storing} = :queue.out(spool.storing)
    spool = %{spool | storing: storing, storing_size: spool.storing_size - size}
    {publication, from, %{data | spool: spool}}
  end

  @doc "Does what can be done now: accepts, reads, writes, and answers."
  @spec go_on(State.t()) :: State.t()
  def go_on(data),
    do: data |> tell_store() |> unblock() |> read_on() |> write() |> answer_flushes()

  defp tell_store(%{spool: %{keep: :disk, low: low, told: told} = spool} = data)
       when low > told do
    Store.settled(spool.store, low)
    put_in(data.spool.told, low)
  end

  defp tell_store(data), do: data

  defp unblock(%{spool: spool} = data) do
    case Blocked.take(spool.blocked, &room?(&1, spool)) do
      {publication, from, blocked} ->
        unblock(accept(publication, from, put_in(data.spool.blocked, blocked)))

      nil ->
        data
    end
  end

  # A client that closes leaves the rest in the files.
  defp read_on(%{spool: %{reading?: false, unread: unread, next: next} = spool} = data)
       when unread < next do
    half = div(spool.limit, 2)

    if open?(data) and ready?(data) and spool.size <= half do
      Store.read(spool.store, unread, max(half, 1))
      put_in(data.spool.reading?, true)
    else
      data
    end
  end

  defp read_on(data), do: data

  defp write(%{spool: %{chunk: [], withheld: nil} = spool} = data) do
    if :queue.is_empty(spool.queue) or not ready?(data), do: data, else: write_chunk(data)
  end

  defp write(data), do: data

  defp write_chunk(data) do
    case Spool.take_chunk(data.spool) do
      {[], _spool} ->
        data

      {chunk, spool} ->
        requests = for {number, publication} <- chunk, do: {{:spool, number}, sent(publication)}
        cost = chunk |> Enum.map(fn {_number, publication} -> publication.size end) |> Enum.sum()
        Writing.submit_all(requests, cost, :spool, %{data | spool: spool})
    end
  end

  defp sent(%{frames: frames, sent: sent}),
    do: for({_position, frame} <- Enum.take(frames, sent), do: frame)

  defp answer_flushes(%{spool: %{flushes: flushes, recovered?: recovered?}} = data)
       when flushes == [] or not recovered?,
       do: data

  defp answer_flushes(%{spool: %{low: low, flushes: flushes}} = data) do
    {done, flushes} = Enum.split_with(flushes, fn {target, _from, _timer} -> target <= low end)

    for {_target, from, timer} <- done do
      Process.cancel_timer(timer)
      :gen_statem.reply(from, :ok)
    end

    put_in(data.spool.flushes, flushes)
  end

  # What the broker answers

  @doc "All receipts of what was written of a publication are there, or will not come."
  @spec answered(
          Spool.sequence_number(),
          :ok | {:error, atom() | Frame.t(), [non_neg_integer()]},
          State.t()
        ) :: State.t()
  def answered(number, :ok, data), do: confirm(number, data)

  def answered(number, {:error, reason, places}, data) do
    spool = Spool.left(data.spool, number, places)
    # What is kept is written again on the next connection.
    spool = if spool.keep == :none, do: Spool.fail(spool, number, Error.new(reason)), else: spool
    %{data | spool: spool}
  end

  defp confirm(number, data), do: update_in(data.spool, &Spool.confirm(&1, number))

  @doc "The frame at this place of what was written of a publication was refused, or cannot be written."
  @spec refused(Spool.sequence_number(), non_neg_integer(), atom() | Frame.t(), State.t()) ::
          State.t()
  def refused(number, place, reason, %{spool: spool} = data) do
    {position, frame} = Enum.at(spool.written[number].frames, place)
    error = Error.new(reason)
    if spool.keep != :none, do: Events.not_published(frame, error, data)
    %{data | spool: Spool.add_failure(spool, number, [position], error)}
  end

  @doc "The broker has refused something, and does not say what."
  @spec suspect(Frame.t(), State.t()) :: State.t()
  # It was not what is withheld.
  def suspect(_error, %{spool: %{withheld: withheld} = spool} = data) when withheld != nil,
    do: %{data | spool: %{spool | withheld: nil, refused: {nil, 0}}}

  def suspect(_error, %{spool: %{keep: keep, written: written}} = data)
      when keep == :none or written == %{},
      do: data

  def suspect(error, %{spool: spool} = data) do
    case Map.to_list(spool.written) do
      [{number, %{sent: 1, frames: [{position, _frame} | _unsent]}}] ->
        %{data | spool: count_refusal({number, position}, error, spool)}

      _several ->
        %{data | spool: Spool.suspect(spool, Map.keys(spool.written))}
    end
  end

  defp count_refusal({number, _position} = frame, error, spool) do
    times = with {^frame, times} <- spool.refused, do: times + 1, else: (_other -> 1)
    withheld = if times >= @refusals, do: error
    %{Spool.suspect(spool, [number]) | refused: {frame, times}, withheld: withheld}
  end

  defp forget_requests(numbers, data) do
    froms = for number <- numbers, do: {:spool, number}
    data = update_in(data.requests, &Requests.forget(&1, froms))
    if Requests.none?(data.requests), do: Routing.urgent(false, data)
    data
  end

  # Endings

  @doc "There is a connection."
  @spec connected(State.t()) :: State.t()
  def connected(%{spool: spool, connection: %{sender: sender}} = data) do
    if spool.withheld, do: Process.send_after(self(), {:spool, {:test_over, sender}}, @test_time)
    go_on(put_in(data.spool.began, spool.low))
  end

  # An ERROR can be lost when the broker closes the connection and has not read everything.
  @doc "The connection ends. If it has not come further than the one before, that may be due to what was written."
  @spec suspect_if_stuck(State.t()) :: State.t()
  def suspect_if_stuck(%{spool: %{low: low, began: low, keep: keep} = spool} = data)
      when keep != :none do
    case for {number, %{sent: sent}} <- spool.written, sent > 0, do: number do
      [] -> data
      numbers -> %{data | spool: Spool.suspect(spool, numbers)}
    end
  end

  def suspect_if_stuck(data), do: data

  @doc "The connection has ended. Its requests have been answered."
  @spec disconnected(State.t()) :: State.t()
  def disconnected(data), do: update_in(data.spool, &Spool.requeue(%{&1 | chunk: []}))

  @doc "There will be no connection for some time."
  @spec no_connection(State.t()) :: State.t()
  def no_connection(%{spool: %{keep: :none}} = data) do
    error = Error.new(:disconnected)
    answer_flushes(update_in(refuse_blocked(data).spool, &Spool.fail_all(&1, error, error)))
  end

  def no_connection(data), do: data

  @doc "Refuses those that wait for room."
  @spec refuse_blocked(State.t()) :: State.t()
  def refuse_blocked(data) do
    {froms, blocked} = Blocked.take_all(data.spool.blocked)
    for from <- froms, do: :gen_statem.reply(from, {:error, :disconnected})
    put_in(data.spool.blocked, blocked)
  end

  @doc "Whether something is still to be written before the client closes."
  @spec busy?(State.t()) :: boolean()
  def busy?(%{spool: %{queue: queue, withheld: withheld}} = data),
    do: ready?(data) and withheld == nil and not :queue.is_empty(queue)

  @doc "The client ends. What is in files stays there."
  @spec stop(State.t()) :: State.t()
  def stop(data) do
    %{spool: spool} = data = refuse_blocked(data)

    for {_publication, from} <- :queue.to_list(spool.storing),
        do: :gen_statem.reply(from, {:error, :unconfirmed})

    case spool.keep do
      :disk ->
        data = tell_store(data)
        Store.stop(spool.store, @stop_timeout)
        data

      :memory ->
        # It may have been written on an earlier connection.
        unconfirmed = Error.new(:unconfirmed)
        %{data | spool: Spool.fail_all(spool, unconfirmed, unconfirmed)}

      :none ->
        %{data | spool: Spool.fail_all(spool, Error.new(:unconfirmed), Error.new(:disconnected))}
    end
  end

  defp reply(from, reply, data) do
    :gen_statem.reply(from, reply)
    data
  end
end
