defmodule Barytherium.Consumer.Handler do
  @moduledoc false
  # Runs the callbacks of a consumer on messages, and acknowledges them.

  alias Barytherium.Client.{Feed, Session}
  alias Barytherium.Connection.Deadline
  alias Barytherium.Consumer.{Callback, Decisions, FailureLog, Retry}
  alias Barytherium.{Frame, Telemetry}

  # Acknowledgements wait until the end of the list of frames, but not longer than this, in native time
  # units. If the process is killed, the broker delivers again what it has not acknowledged.
  @flush_after System.convert_time_unit(10, :millisecond, :native)

  # Reading the clock takes up to 0.1 us, a tenth of what else a message takes. So it is read only after
  # several messages, as long as that many take less than this.
  @quick System.convert_time_unit(1, :millisecond, :native)
  @longest_stride 16

  # Milliseconds between exceptions that follow each other.
  @longest_pause 1_000

  @enforce_keys [
    :module,
    :state,
    :client,
    :on_exception,
    # nil without a limit of attempts.
    :retry,
    :nack_headers,
    # Where the client puts the deadline when the consumer stops.
    :stop_at,
    # A counter of the messages of this connection that stay unacknowledged because their callback raised, and
    # how many there may be.
    :left,
    :most_left,
    # Where it says since when it is in the same callback: `{atomics, number}`.
    :working
  ]
  @optional [
    # The process that deals out the messages, if there are several with callbacks; or the one that writes
    # cumulative acknowledgements, if these share the messages by a key.
    dealer: nil,
    partition: nil,
    # nil if batches are what has arrived together; and where it says that it has a part of one.
    batcher: nil,
    collecting: nil,
    session: nil,
    # The senders of earlier connections, whose messages may still be here.
    former: [],
    # The mode of the subscription, and its delays, or nil if there are several.
    mode: nil,
    delays: nil,
    # The messages whose acknowledgement is to be timed: where, and when they were read.
    timed: [],
    # The sender of the connection that the messages come from, and whether that is the session's and
    # still exists.
    sender: nil,
    live: false,
    # When handling has to end, because the consumer stops, and whether that has come.
    deadline: :infinity,
    expired: false,
    # Exceptions one after the other, and how many of them are of the message that is tried.
    failures: 0,
    attempts: 0,
    log: %{},
    # Whether telemetry events are wanted.
    observed: false,
    # Acknowledgements that have not been written, the latest first.
    acks: [],
    # The time of the last write, or of the beginning of the list.
    flushed: 0,
    # The last reading of the clock, and after how many messages the next one is.
    checked: 0,
    stride: 1
  ]
  defstruct @enforce_keys ++ @optional

  @type t :: %__MODULE__{}

  # Nobody has messages of more connections in the mailbox.
  @former 16

  @doc "Begins a connection."
  @spec connected(t(), Session.t()) :: t()
  def connected(%__MODULE__{} = handler, %Session{modes: modes} = session) do
    mode = if map_size(modes) == 1, do: modes |> Map.values() |> hd()
    delays = if mode, do: session.delays |> Map.values() |> List.first()
    %{handler | session: session, mode: mode, delays: delays, former: former(handler)}
  end

  defp former(%{session: nil}), do: []
  defp former(handler), do: Enum.take([handler.session.sender | handler.former], @former)

  # Milliseconds that the client's event about a connection, which it sent before it subscribed, may still take.
  @late 1_000

  @doc """
  Messages of a connection that is not known yet: what is not on the heap of a process may come in another order than
  it was sent in by several processes. So the event about the connection is there too, or about to come.
  """
  @spec meet(t(), pid()) :: t()
  def meet(%__MODULE__{session: %Session{sender: sender}} = handler, sender), do: handler

  def meet(%__MODULE__{former: former} = handler, sender) do
    if sender in former or not Process.alive?(sender) do
      handler
    else
      receive do
        {:"$gen_cast", {:client, {:session, %Session{sender: ^sender} = session}}} ->
          connected(handler, session)
      after
        @late -> handler
      end
    end
  end

  @doc """
  Handles messages in order, and writes their acknowledgements. `:stop`: a callback raised, and the
  consumer is to end. The first one was read at `read_at`.
  """
  @spec handle(t(), [Frame.t()], pid(), read_at :: non_neg_integer()) :: {:ok | :stop, t()}
  def handle(%__MODULE__{} = handler, [], _sender, _read_at), do: {:ok, handler}

  def handle(%__MODULE__{} = handler, messages, sender, read_at) do
    now = System.monotonic_time()
    working(handler.working, now)

    handler =
      observe(%{
        handler
        | sender: sender,
          observed: Telemetry.observed?(),
          flushed: now,
          checked: now,
          stride: 1
      })

    handler = %{handler | timed: timed(handler, firsts(handler, messages), read_at)}

    {next, handler} =
      if function_exported?(handler.module, :handle_batch, 2),
        do: batches(messages, handler),
        else: each(messages, handler)

    idle(handler.working)
    {next, Decisions.flush(handler)}
  end

  # The first message of each subscription, which stands for all.
  defp firsts(%{mode: nil, session: %Session{} = session}, messages),
    do: Enum.uniq_by(messages, &Session.subscription_id(session, &1))

  defp firsts(_handler, [first | _]), do: [first]

  defp timed(handler, firsts, read_at) do
    for message <- firsts,
        wanted?(handler, message),
        delays = delays(handler, message),
        reduce: [] do
      timed ->
        Feed.delayed(delays.to_start, read_at)

        if Decisions.mode(handler, message) == :auto,
          do: timed,
          else: [{delays.to_ack, read_at} | timed]
    end
  end

  defp delays(%{mode: nil, session: %Session{delays: delays} = session}, message),
    do: delays[Session.subscription_id(session, message)]

  defp delays(%{delays: delays}, _message), do: delays

  @doc "A callback begins at this time. Several short ones count as one."
  @spec working({:atomics.atomics_ref(), pos_integer()}, integer()) :: :ok
  def working({times, number}, now \\ System.monotonic_time()),
    do: :atomics.put(times, number, System.convert_time_unit(now, :native, :millisecond))

  @doc "No callback runs."
  @spec idle({:atomics.atomics_ref(), pos_integer()}) :: :ok
  def idle({times, number}), do: :atomics.put(times, number, 0)

  # Looks at what decides whether messages are handled.
  defp observe(%{sender: sender} = handler) do
    handler = look_for_stop(handler)
    expired = Deadline.left(handler.deadline) == 0
    live = match?(%Session{sender: ^sender}, handler.session) and Process.alive?(sender)
    %{handler | live: live, expired: expired}
  end

  defp wanted(%{live: true, expired: false}, messages), do: messages
  defp wanted(handler, messages), do: Enum.filter(messages, &wanted?(handler, &1))

  # After the end of a connection its broker delivers these again, unless it has forgotten them.
  defp wanted?(%{expired: true}, _message), do: false
  defp wanted?(%{live: true}, _message), do: true
  defp wanted?(%{session: session}, message), do: Session.forgotten?(session, message)

  defp each(messages, handler),
    do: each(messages, handler, handler.state, handler.acks, handler.stride)

  # A message takes about a microsecond, so the state and the acknowledgements are not put into the
  # struct each time.
  defp each([], handler, state, acks, _left), do: {:ok, %{handler | state: state, acks: acks}}

  defp each(messages, handler, state, acks, 0),
    do: each(messages, check_time(%{handler | state: state, acks: acks}))

  defp each([message | messages], handler, state, acks, left) do
    if wanted?(handler, message) do
      case attempt(handler, message, state) do
        {command, state} ->
          acks = Decisions.note(acks, command, message, handler)
          each(messages, succeeded(handler), state, acks, left - 1)

        exception ->
          failed(exception, :handle_message, [message], messages, %{
            handler
            | state: state,
              acks: acks
          })
      end
    else
      each(messages, handler, state, acks, left)
    end
  end

  # What the broker has delivered too often already is not tried: its callback may have ended the VM each time.
  defp attempt(%{retry: nil} = handler, message, state),
    do: Callback.call(handler, :handle_message, message, state)

  defp attempt(handler, message, state) do
    if handler.attempts == 0 and exhausted?(handler, message),
      do: :delivered_too_often,
      else: Callback.call(handler, :handle_message, message, state)
  end

  defp exhausted?(%{retry: retry, session: session} = handler, message),
    do: Retry.exhausted?(retry, session, message, handler.attempts)

  defp check_time(handler) do
    now = System.monotonic_time()
    quick? = now - handler.checked < @quick
    stride = if quick?, do: min(2 * handler.stride, @longest_stride), else: 1
    working(handler.working, now)
    handler = %{handler | checked: now, stride: stride}

    if now - handler.flushed > @flush_after,
      do: %{handler | flushed: now} |> Decisions.flush() |> observe(),
      else: handler
  end

  defp succeeded(%{failures: 0, attempts: 0} = handler), do: handler
  defp succeeded(handler), do: %{handler | failures: 0, attempts: 0}

  defp batches(messages, %{retry: nil} = handler),
    do: handler |> wanted(messages) |> batch(handler)

  # Those that were delivered too often are decided on in their turn.
  defp batches(messages, handler) do
    handler
    |> wanted(messages)
    |> Enum.chunk_by(&exhausted?(handler, &1))
    |> in_order(handler, fn [message | _] = chunk, handler ->
      if exhausted?(handler, message),
        do: failed(:delivered_too_often, :handle_batch, wanted(handler, chunk), [], handler),
        else: handler |> wanted(chunk) |> batch(handler)
    end)
  end

  defp in_order([], handler, _work), do: {:ok, handler}

  defp in_order([one | others], handler, work) do
    with {:ok, handler} <- work.(one, between(handler)), do: in_order(others, handler, work)
  end

  # Between two callbacks of a list that is not handled one by one.
  defp between(handler) do
    now = System.monotonic_time()
    working(handler.working, now)

    handler =
      if now - handler.flushed > @flush_after,
        do: Decisions.flush(%{handler | flushed: now}),
        else: handler

    observe(handler)
  end

  defp batch([], handler), do: {:ok, handler}

  defp batch(messages, handler) do
    case Callback.call(handler, :handle_batch, messages, handler.state) do
      {command, state} ->
        acks = Decisions.note_all(command, messages, handler)
        {:ok, %{succeeded(handler) | state: state, acks: acks}}

      exception ->
        failed(exception, :handle_batch, messages, [], handler)
    end
  end

  defp failed(:delivered_too_often, _callback, failed, messages, handler),
    do: give_up(:delivered_too_often, failed, messages, handler)

  defp failed(exception, callback, failed, messages, handler) do
    handler = %{handler | log: FailureLog.log(handler.log, handler.module, callback, exception)}

    if handler.retry,
      do: try_again(exception, callback, failed, messages, handler),
      else: give_back(failed, messages, handler)
  end

  defp try_again(exception, callback, failed, messages, handler) do
    handler = %{handler | failures: handler.failures + 1, attempts: handler.attempts + 1}

    case failed do
      [one] ->
        if exhausted?(handler, one),
          do: give_up(Retry.reason(exception), failed, messages, handler),
          else: wait_and_try(callback, failed, messages, handler)

      batch ->
        wait_and_try(callback, batch, messages, handler)
    end
  end

  # The wait is not a callback's. During it the connection may have ended: then the broker delivers the messages again,
  # unless it has forgotten them. Or the consumer may have been asked to stop: those are given up then.
  defp wait_and_try(callback, failed, messages, handler) do
    handler = Decisions.flush(handler)
    idle(handler.working)
    Retry.wait(Retry.delay(handler.retry, handler.attempts), fn -> hindered?(failed, handler) end)
    working(handler.working)
    handler = observe(handler)

    case {handler.deadline, wanted(handler, failed)} do
      {_deadline, []} -> each(messages, %{handler | attempts: 0})
      {:infinity, failed} -> again(callback, failed, messages, handler)
      {_stopping, failed} -> leave(failed, messages, %{handler | attempts: 0})
    end
  end

  defp hindered?(failed, handler) do
    handler = observe(handler)
    handler.deadline != :infinity or wanted(handler, failed) == []
  end

  defp again(:handle_message, failed, messages, handler), do: each(failed ++ messages, handler)

  # The last attempt is made with each message by itself, so that one that fails does not take the others with it.
  defp again(:handle_batch, failed, _none, %{attempts: attempts, retry: retry} = handler) do
    last? = Enum.any?(failed, &Retry.exhausted?(retry, handler.session, &1, attempts + 1))

    if last? do
      alone = &try_alone(&1, %{&2 | attempts: attempts})

      with {:ok, handler} <- in_order(failed, handler, alone),
           do: {:ok, %{handler | attempts: 0}}
    else
      batch(failed, handler)
    end
  end

  defp try_alone(message, handler) do
    case {handler.deadline, wanted(handler, [message])} do
      {_deadline, []} -> {:ok, handler}
      {:infinity, one} -> batch(one, handler)
      {_stopping, one} -> leave(one, [], %{handler | attempts: 0})
    end
  end

  defp leave(failed, messages, %{session: session} = handler) do
    {forgotten, others} = Enum.split_with(failed, &Session.forgotten?(session, &1))

    with {:ok, handler} <- give_up(:stopping, forgotten, [], handler),
         do: give_back(others, messages, handler)
  end

  # What cannot be decided on is left as if there were no limit.
  defp give_up(reason, failed, messages, handler) do
    {left, handler} =
      Enum.reduce(failed, {[], %{handler | attempts: 0}}, fn message, {left, handler} ->
        case Retry.give_up(handler, message, reason) do
          :left -> {left ++ [message], handler}
          handler -> {left, handler}
        end
      end)

    # If the user wants them again, they may come at once.
    if List.keymember?(handler.nack_headers, "requeue", 0),
      do: Process.sleep(pause(handler.failures))

    handler = observe(handler)
    if left == [], do: each(messages, handler), else: give_back(left, messages, handler)
  end

  # Refuses the messages, or leaves them unacknowledged, and goes on with the others.
  defp give_back(failed, messages, handler) do
    {next, handler} = give_back(failed, handler)

    if next == :stop or handler.on_exception == :restart do
      {:stop, handler}
    else
      # What was refused may come again at once.
      if Session.requeues?(handler.session), do: Process.sleep(pause(handler.failures))
      handler = %{handler | failures: handler.failures + 1}

      # During the pauses the connection may have ended, or the consumer may have been asked to stop.
      each(messages, observe(handler))
    end
  end

  # The broker has to deliver these messages again. `:stop`: it will only do so on another connection.
  defp give_back(failed, %{session: session} = handler) do
    # What a broker has forgotten it cannot deliver again, so it is out of the way.
    {forgotten, failed} = Enum.split_with(failed, &Session.forgotten?(session, &1))
    handler = %{handler | acks: Decisions.note_all(:ack, forgotten, handler)}
    acknowledged = length(failed)

    cond do
      Session.requeues?(session) ->
        {:ok, Decisions.flush(%{handler | acks: Decisions.refuse(failed, handler)})}

      acknowledged == 0 ->
        {:ok, Decisions.flush(handler)}

      # The next acknowledgement would cover them.
      Enum.any?(failed, &(Decisions.mode(handler, &1) == :client)) ->
        {:stop, Decisions.flush(handler)}

      too_many?(acknowledged, handler) ->
        {:stop, Decisions.flush(handler)}

      true ->
        {:ok, Decisions.flush(handler)}
    end
  end

  # The broker counts them as being handled, so with more of them it would send nothing new. After the end of
  # the connection it delivers them again.
  defp too_many?(count, %{left: left, most_left: most}) do
    :counters.add(left, 1, count)
    :counters.get(left, 1) >= most
  end

  # A broker may deliver a refused message again at once, and nothing else. The first exception after a
  # success costs no time.
  defp pause(0), do: 0
  defp pause(failures), do: min(2 ** min(failures, 10), @longest_pause)

  # The client sets the deadline there, because nobody looks into the mailbox before the list is done.
  defp look_for_stop(%{deadline: :infinity, stop_at: stop_at} = handler) do
    case :atomics.get(stop_at, 1) do
      0 -> handler
      deadline -> %{handler | deadline: deadline}
    end
  end

  defp look_for_stop(handler), do: handler
end
