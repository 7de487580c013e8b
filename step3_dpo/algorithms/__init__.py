"""The methods of this stage alone: those that know the weights of their losses beforehand; see utils/combining."""
