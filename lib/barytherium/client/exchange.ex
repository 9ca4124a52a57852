defmodule Barytherium.Client.Exchange do
  @moduledoc false
  # What a client writes on its connection, and what the broker answers. The functions run in the
  # client (see `Barytherium.Client.Server`), and take and return its data.

  alias Barytherium.Client.{
    Acknowledgements,
    Events,
    Handlers,
    Publishing,
    Renewals,
    Replies,
    Requests,
    Requeue,
    Routing,
    Session,
    Spool,
    State,
    Transactions,
    Writing
  }

  alias Barytherium.Connection.Deadline
  alias Barytherium.Frame
  alias Barytherium.Network.Sender

  @typedoc "What a caller waits for: receipts, the sender, or the sender and BEGIN."
  @type action ::
          {:write, [Frame.t()], Deadline.t()}
          | {:request, Frame.t(), String.t(), Deadline.t()}
          | :sender
          | {:begin, String.t(), :atomics.atomics_ref()}

  @typedoc "Who gets the result of a request."
  @type from ::
          {:caller, :gen_statem.from()}
          | {:reply, :gen_statem.from(), reference()}
          | {:subscribe, :gen_statem.from(), pos_integer()}
          | {:unsubscribe, from(), pos_integer()}
          | {:renewal, Session.subscription()}
          | {:commit, :gen_statem.from(), String.t()}
          | {:spool, Spool.sequence_number()}
          | Requeue.t()
          | :quiescing
          | :nobody

  # Milliseconds that the broker's answer to an UNSUBSCRIBE may take that nobody waits for.
  @unsubscribe_timeout 10_000

  @doc "Answers a call that needs a connection, without one."
  @spec refuse(action(), :gen_statem.from(), State.t()) :: State.t()
  def refuse({:write, frames, _deadline}, from, data),
    do: answer({:caller, from}, {:error, :disconnected, indexes(frames)}, data)

  def refuse(_action, from, data), do: reply(from, {:error, :disconnected}, data)

  @doc "Does what needs a connection."
  @spec perform(action(), :gen_statem.from(), State.t()) :: State.t()
  def perform(:sender, from, data), do: reply(from, {:ok, data.connection.sender}, data)

  def perform({:begin, id, over}, {pid, _tag} = from, data),
    do: reply(from, {:ok, data.connection.sender}, Transactions.begin(id, over, pid, data))

  def perform({:write, frames, deadline}, from, data),
    do: Writing.submit(frames, {:caller, from}, deadline, data)

  def perform({:request, frame, reply_to, deadline}, from, data),
    do: Replies.submit(frame, reply_to, from, deadline, data)

  @doc "Writes UNSUBSCRIBE frames, if there is a connection."
  @spec write_unsubscribe([State.subscription()], from(), timeout(), atom(), State.t()) ::
          State.t()
  def write_unsubscribe(entries, from, timeout, :connected, data) do
    # One that was refused is not there.
    entries = Enum.filter(entries, &subscribed?(&1.subscription, data))
    {entries, silent} = Enum.split_with(entries, & &1.subscription.receipt)
    {frames, data} = end_all(silent, data)
    if frames != [], do: Sender.write(data.connection.sender, frames)
    {frames, data} = end_all(entries, data)

    if frames != [],
      do: Writing.write_now(frames, from, timeout, data),
      else: answer(from, :ok, data)
  end

  # Without a connection there is nothing to end.
  def write_unsubscribe(_entries, from, _timeout, _state, data), do: answer(from, :ok, data)

  defp end_all(entries, data) do
    {frames, session} = Enum.flat_map_reduce(entries, data.connection.session, &end_one/2)
    {frames, put_in(data.connection.session, session)}
  end

  defp end_one(%{subscription: subscription} = entry, session) do
    {frame, left} = Session.unsubscribe(session, subscription)
    %{headers: headers, delete: delete} = how(entry)
    {own, others} = if delete, do: Session.deletion(session, subscription), else: {[], []}
    {[%{frame | headers: frame.headers ++ own ++ headers} | others], left}
  end

  # How it ends, which only `Barytherium.Client.unsubscribe/3` says.
  defp how(entry), do: Map.get(entry, :unsubscribe, %{headers: [], delete: false})

  @doc """
  Ends a subscription of a client. It is kept until the broker's receipt, because the last messages of
  one without acknowledgements are still delivered.
  """
  @spec unsubscribe(State.subscription(), from(), timeout(), atom(), State.t()) :: State.t()
  def unsubscribe(entry, from, timeout \\ @unsubscribe_timeout, state, data)

  def unsubscribe(
        %{subscription: subscription} = entry,
        from,
        timeout,
        state,
        data
      ) do
    if how(entry).delete and not subscribed?(subscription, data),
      # The broker has refused it, or it has not been written yet.
      do: answer(from, {:error, :not_subscribed, []}, data),
      else: end_subscription(entry, from, timeout, state, data)
  end

  defp end_subscription(
         %{subscription: %{number: number} = subscription} = entry,
         from,
         timeout,
         state,
         data
       ) do
    # Messages that cannot be acknowledged any more are delivered again to another subscriber. The others
    # go to this one until the broker has answered.
    if subscription.ack != :auto, do: Routing.delete(subscription, data)
    entry = Map.merge(entry, %{ending: true, late: [], from: from})
    data = put_in(data.subscriptions[number], entry)

    # What is deleted is not to be given back.
    if state == :connected and subscribed?(subscription, data) and
         not how(entry).delete and Requeue.needed?(data, subscription) do
      if from != :nobody, do: Process.send_after(self(), {:unsubscribe_timeout, number}, timeout)
      Requeue.begin(subscription, data)
    else
      write_unsubscribe([entry], {:unsubscribe, from, number}, timeout, state, data)
    end
  end

  defp subscribed?(subscription, data),
    do: Session.subscribed?(data.connection.session, subscription)

  @doc "Nobody waits any longer for the end of a subscription, which goes on."
  @spec unsubscribe_timeout(pos_integer(), State.t()) :: State.t()
  def unsubscribe_timeout(number, data) do
    case data.subscriptions do
      %{^number => %{from: from}} when from != :nobody ->
        data = put_in(data.subscriptions[number].from, :nobody)
        answer(from, {:error, :timeout, []}, data)

      _over ->
        data
    end
  end

  @spec forget(pos_integer(), State.t()) :: State.t()
  def forget(number, data) do
    {entry, subscriptions} = Map.pop(data.subscriptions, number)

    if entry do
      with %{session: %Session{} = session} <- data.connection,
           do: Acknowledgements.forget(session, Session.id(session, entry.subscription))

      Process.demonitor(entry.monitor, [:flush])
      Routing.end_target(entry)
    end

    %{data | subscriptions: subscriptions}
  end

  @doc "Handles a RECEIPT or ERROR frame."
  @spec control(Frame.t(), State.t()) :: State.t()
  def control(%Frame{command: :receipt, headers: headers}, data),
    do: confirm(receipt_id(headers), data)

  # An ERROR about a frame that asked for a receipt concerns only that frame, if the broker says so.
  # After any other the connection is over (STOMP 1.2, "ERROR"). Not every broker closes it.
  def control(%Frame{command: :error} = frame, data) do
    # Like a message of a subscription that has ended, which is dropped.
    if Session.late_message?(data.connection.session, frame), do: data, else: refusal(frame, data)
  end

  # It has no route.
  def control(%Frame{command: :message} = frame, data) do
    session = data.connection.session

    case session && Session.number(session, frame) do
      nil -> unrouted(frame, data)
      number -> Requeue.late(number, frame, data)
    end
  end

  def control(_unexpected, data), do: data

  defp confirm(receipt_id, data) do
    case Requests.confirm(data.requests, receipt_id) do
      {:open, requests} -> %{data | requests: requests}
      {:done, from, requests} -> finish(from, :ok, %{data | requests: requests})
    end
  end

  # It is of none of our subscriptions.
  defp unrouted(frame, data) do
    case Replies.request(frame, data) do
      :none ->
        Events.unexpected(frame, data)
        data

      :late ->
        data

      number ->
        replied(number, frame, data)
    end
  end

  # Our ids have no blanks, and some 1.0 servers pad their headers.
  defp receipt_id(headers) do
    with {_name, id} <- List.keyfind(headers, "receipt-id", 0), do: String.trim(id)
  end

  defp refusal(%Frame{headers: headers} = frame, data) do
    Events.error(frame, data)

    case Requests.find(data.requests, receipt_id(headers)) do
      nil -> error(frame, data)
      {number, index} -> refused(Requests.from(data.requests, number), number, index, frame, data)
    end
  end

  # The other frames of the publication may be confirmed yet.
  defp refused({:spool, publication}, _number, index, %Frame{headers: headers} = frame, data),
    do: confirm(receipt_id(headers), Publishing.refused(publication, index, frame, data))

  defp refused(_from, number, _index, frame, data), do: fail(number, frame, data)

  defp error(frame, %{connection: %{session: nil}} = data),
    do: put_in(data.connection.verdict, frame)

  defp error(frame, data) do
    data = put_in(Publishing.suspect(frame, data).connection.verdict, frame)
    Writing.hang_up(frame, fail_all(frame, data))
  end

  @doc """
  Acknowledges messages: in a transaction, or answers when the broker has sent receipts, or when they are about to be
  written.
  """
  @spec acknowledge(
          {:ack | :nack, [Frame.t()], Frame.frame_headers()},
          {:transaction, String.t()} | {:receipt, timeout()} | :written,
          :gen_statem.from(),
          atom(),
          State.t()
        ) :: State.t()
  def acknowledge(
        {command, messages, headers},
        how,
        from,
        state,
        %{connection: %{verdict: nil, session: %Session{} = session}} = data
      )
      when state in [:connected, :closing] do
    with {:ok, done} <- done(how, data),
         {:ok, frames, ids} <-
           Acknowledgements.acknowledge(session, command, messages, headers, done) do
      write_acknowledgements(frames, how, from, acknowledged(how, ids, data))
    else
      {:shared, decisions} when how == :written ->
        reply(from, Handlers.settle(data.handlers, decisions), data)

      # They would cover the messages of other handlers, and are written when these have decided.
      {:shared, _decisions} ->
        reply(from, {:error, :unsupported}, data)

      error ->
        reply(from, error, data)
    end
  end

  def acknowledge(_what, _how, from, _state, data), do: reply(from, {:error, :stale}, data)

  # What a transaction has acknowledged already.
  defp done({:transaction, id}, %{connection: %{transactions: transactions}}) do
    case transactions do
      %{^id => %{acknowledged: done}} -> {:ok, done}
      _over -> {:error, :stale}
    end
  end

  defp done(_no_transaction, _data), do: {:ok, []}

  # Of what was acknowledged before nothing is known.
  defp write_acknowledgements([], {:receipt, _timeout}, from, data),
    do: reply(from, {:error, :unconfirmed, []}, data)

  # They are written for certain, as those without a receipt: nothing else could be said of them later.
  defp write_acknowledgements(frames, {:receipt, timeout}, from, data),
    do: Writing.write_now(frames, {:caller, from}, timeout, data)

  defp write_acknowledgements(frames, _no_receipt, from, data) do
    if frames != [], do: Sender.write(data.connection.sender, frames)
    reply(from, :ok, data)
  end

  # They are not, if the transaction is aborted.
  defp acknowledged({:transaction, id}, acknowledged, data),
    do: update_in(data.connection.transactions[id].acknowledged, &(acknowledged ++ &1))

  defp acknowledged(_no_transaction, acknowledged, data) do
    Acknowledgements.done(data.connection.session, acknowledged)
    data
  end

  @doc "A first message has come to a subscription. Not every broker sends a receipt for SUBSCRIBE."
  @spec first_message(binary(), State.t()) :: State.t()
  def first_message(key, %{connection: %{session: %Session{}}} = data) do
    if is_map_key(data.connection.session.destinations, key), do: Events.by_destination(data)
    number = Session.number_of(data.connection.session, key)

    case data.subscriptions do
      %{^number => %{request: request}} -> written(request, data)
      _ended -> data
    end
  end

  def first_message(_key, data), do: data

  @doc "A request is done without receipts."
  @spec written(pos_integer(), State.t()) :: State.t()
  def written(number, data) do
    case Requests.take(data.requests, number) do
      {:ok, from, _left, requests} -> finish(from, :ok, %{data | requests: requests})
      :error -> data
    end
  end

  defp replied(number, frame, data) do
    {:ok, from, _left, requests} = Requests.take(data.requests, number)
    finish(from, {:ok, frame}, %{data | requests: requests})
  end

  @doc "Answers the requests that wait for replies: there will be none."
  @spec fail_replies(State.t()) :: State.t()
  def fail_replies(data),
    do: Enum.reduce(Replies.numbers(data), data, &fail(&1, :unconfirmed, &2))

  @doc "Answers all requests whose receipts have not arrived."
  @spec fail_all(atom() | Frame.t(), State.t()) :: State.t()
  def fail_all(reason, data),
    do: data.requests |> Requests.numbers() |> Enum.reduce(data, &fail(&1, reason, &2))

  @doc "Answers a request, if its receipts have not arrived."
  @spec fail(pos_integer(), atom() | Frame.t(), State.t()) :: State.t()
  def fail(number, reason, data) do
    case Requests.take(data.requests, number) do
      {:ok, from, left, requests} ->
        finish(from, {:error, reason, left}, %{data | requests: requests})

      :error ->
        data
    end
  end

  defp finish({from, timer}, result, data) do
    timer && Process.cancel_timer(timer)
    if Requests.none?(data.requests), do: Routing.urgent(false, data)
    answer(from, result, data)
  end

  @doc "Passes on the result of a request: `:ok`, or why and which of its frames were not confirmed."
  @spec answer(
          from(),
          :ok | {:ok, Frame.t()} | {:error, atom() | Frame.t(), [non_neg_integer()]},
          State.t()
        ) ::
          State.t()
  def answer({:caller, from}, result, data), do: reply(from, result, data)

  def answer({:reply, from, monitor}, result, data) do
    Process.demonitor(monitor, [:flush])
    result = with {:error, reason, _left} <- result, do: {:error, reason}
    reply(from, result, data)
  end

  def answer({:spool, publication}, result, data),
    do: Publishing.answered(publication, result, data)

  def answer(from, _result, data) when from in [:nobody, :quiescing], do: data

  def answer({:subscribe, from, number}, :ok, data),
    do: reply(from, {:ok, {self(), number}}, data)

  def answer({:subscribe, from, number}, {:error, reason, _left}, data) do
    reply(from, {:error, reason}, withdraw(data.subscriptions[number], reason, data))
  end

  def answer({:unsubscribe, from, number}, result, data) do
    with %{subscription: subscription} <- data.subscriptions[number],
         do: Routing.delete(subscription, data)

    answer(from, result, forget(number, data))
  end

  def answer({:renewal, subscription}, result, data),
    do: Renewals.answer(subscription, result, data)

  def answer({:commit, from, id}, result, data),
    do: answer({:caller, from}, result, Transactions.committed(id, result, data))

  def answer(%Requeue{subscription: subscription} = requeue, :ok, data) do
    case Requeue.confirmed(requeue, data) do
      {:more, data} -> data
      {:done, data} -> ended(subscription, :ok, data)
    end
  end

  def answer(%Requeue{subscription: subscription} = requeue, {:error, %Frame{}, _left}, data),
    do: ended(subscription, :ok, Requeue.refused(requeue, data))

  def answer(%Requeue{subscription: subscription}, {:error, reason, _left} = error, data) do
    data = if reason == :timeout, do: Writing.hang_up(:timeout, data), else: data
    ended(subscription, error, data)
  end

  defp ended(%{number: number}, result, data) do
    case data.subscriptions do
      %{^number => %{from: from}} -> answer({:unsubscribe, from, number}, result, data)
      _forgotten -> data
    end
  end

  # After a time-out the broker may still carry out the SUBSCRIBE.
  defp withdraw(%{ending: false} = entry, :timeout, data),
    do: unsubscribe(entry, :nobody, :connected, data)

  defp withdraw(%{ending: false, subscription: subscription}, _reason, data),
    do: forget(subscription.number, Writing.withdraw(subscription, data))

  # The subscriber has ended.
  defp withdraw(_entry, _reason, data), do: data

  defp reply(from, reply, data) do
    :gen_statem.reply(from, reply)
    data
  end

  defp indexes(frames), do: Enum.to_list(0..(length(frames) - 1))

  @doc """
  Ends the subscriptions whose messages need no acknowledgement. Their last messages come before the
  receipt, and still go to their processes.
  """
  @spec quiesce(timeout(), State.t()) :: State.t()
  def quiesce(timeout, data) do
    autos = for {_number, %{subscription: %{ack: :auto}} = entry} <- data.subscriptions, do: entry

    write_unsubscribe(autos, :quiescing, timeout, :connected, data)
  end

  @doc "Whether the last messages of subscriptions that end may still come."
  @spec quiescing?(State.t()) :: boolean()
  def quiescing?(data), do: Requests.count(data.requests, &match?({:quiescing, _timer}, &1)) > 0
end
