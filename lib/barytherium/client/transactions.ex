defmodule Barytherium.Client.Transactions do
  @moduledoc false
  # The transactions of a client's callers. They write their messages themselves; BEGIN, COMMIT and ABORT are
  # written here, because a caller may end in the middle, or its subscription. The functions run in the client,
  # and take its data.

  alias Barytherium.Client.{Acknowledgements, Session, State, Transaction, Writing}
  alias Barytherium.Connection.Deadline
  alias Barytherium.Network.Sender

  @typedoc """
  The monitor of the caller, what tells it that the transaction is over, what it acknowledges, and who writes the
  COMMIT: `nil`, if nobody does yet; the caller, if it does not wait for a receipt.
  """
  @type t :: %{
          monitor: reference(),
          over: :atomics.atomics_ref(),
          acknowledged: [Acknowledgements.id()],
          committing: nil | :client | :caller
        }

  @doc "Writes BEGIN for `pid`."
  @spec begin(String.t(), :atomics.atomics_ref(), pid(), State.t()) :: State.t()
  def begin(id, over, pid, data) do
    write(id, :begin, data)
    monitor = :erlang.monitor(:process, pid, tag: {:transaction, id})
    transaction = %{monitor: monitor, over: over, acknowledged: [], committing: nil}
    put_in(data.connection.transactions[id], transaction)
  end

  defp write(id, command, data),
    do: Sender.write(data.connection.sender, [Transaction.frame(id, command)])

  @doc "Begins to commit. `:caller`: it does not wait for the receipt, and writes COMMIT itself."
  @spec commit(String.t(), pid(), :gen_statem.from(), non_neg_integer() | :caller, State.t()) ::
          {:ok, State.t()} | {:error, :disconnected | :transaction_over}
  def commit(id, sender, from, how, %{connection: connection} = data) do
    case connection do
      %{verdict: nil, session: %Session{}, transactions: %{^id => %{committing: nil}}} ->
        {:ok, commit(id, from, how, data)}

      # It was aborted.
      %{verdict: nil, sender: ^sender} ->
        {:error, :transaction_over}

      _other_or_none ->
        {:error, :disconnected}
    end
  end

  defp commit(id, from, :caller, data) do
    :gen_statem.reply(from, :ok)
    put_in(data.connection.transactions[id].committing, :caller)
  end

  defp commit(id, from, timeout, data) do
    data = put_in(data.connection.transactions[id].committing, :client)
    deadline = Deadline.in_ms(timeout)
    Writing.submit([Transaction.frame(id, :commit)], {:commit, from, id}, deadline, data)
  end

  @doc "The result of the COMMIT."
  @spec committed(String.t(), :ok | {:error, term(), list()}, State.t()) :: State.t()
  def committed(id, {:error, reason, _left}, data) when reason in [:not_written, :unescapable],
    do: abort(id, data)

  def committed(id, _written, data) do
    with %{transactions: %{^id => %{acknowledged: acknowledged}}, session: session} <-
           data.connection,
         do: Acknowledgements.done(session, acknowledged)

    forget(id, data)
  end

  @doc "Writes ABORT."
  @spec abort(String.t(), State.t()) :: State.t()
  def abort(id, %{connection: %{verdict: nil, transactions: transactions}} = data)
      when is_map_key(transactions, id) do
    # The caller writes nothing more in it.
    :atomics.put(transactions[id].over, 1, 1)
    write(id, :abort, data)
    forget(id, data)
  end

  def abort(id, data), do: forget(id, data)

  @doc "The caller has ended. A COMMIT that was written is not followed by an ABORT."
  @spec abandoned(String.t(), State.t()) :: State.t()
  def abandoned(id, data) do
    case data.connection do
      %{transactions: %{^id => %{committing: nil}}} -> abort(id, data)
      %{transactions: %{^id => %{committing: :caller}}} -> committed(id, :ok, data)
      _committing_or_over -> data
    end
  end

  @doc """
  Aborts those that acknowledge messages of this subscription, which has ended: their COMMIT would fail, and the
  connection with it.
  """
  @spec abort_for(subscription :: String.t(), State.t()) :: State.t()
  def abort_for(subscription, data) do
    ids =
      for {id, %{committing: nil, acknowledged: acknowledged}} <- data.connection.transactions,
          List.keymember?(acknowledged, subscription, 0),
          do: id

    Enum.reduce(ids, data, &abort/2)
  end

  @doc "What the transactions acknowledge."
  @spec acknowledged(State.t()) :: [Acknowledgements.id()]
  def acknowledged(data) do
    for {_id, %{acknowledged: acknowledged}} <- data.connection.transactions,
        id <- acknowledged,
        do: id
  end

  @doc "Ends all of them with the connection."
  @spec forget_all(State.t()) :: State.t()
  def forget_all(data),
    do: data.connection.transactions |> Map.keys() |> Enum.reduce(data, &forget/2)

  defp forget(id, %{connection: %{transactions: transactions}} = data)
       when is_map_key(transactions, id) do
    {%{monitor: monitor}, data} = pop_in(data.connection.transactions[id])
    Process.demonitor(monitor, [:flush])
    data
  end

  defp forget(_id, data), do: data
end
